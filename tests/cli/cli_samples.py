from __future__ import annotations

import json
from pathlib import Path

from diffretriever.index import Index

MODEL = Path(__file__).parents[1] / "golden" / "checkpoints" / "tiny-dream"
TOPICS = ["planet", "ocean", "protein", "engine", "violin", "harvest", "glacier", "market", "enzyme", "bridge"]
PASSAGES = [
    {
        "_id": f"p{i}",
        "title": f"The {topic}",
        "text": f"Every {topic} has a history; this one tells of {topic} and {TOPICS[i - 1]}.",
        "year": 2000 + i,
        "lang": "en" if i % 2 else "de",
    }
    for i, topic in enumerate(TOPICS)
]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def held(folder):
    with Index.open(folder) as index:
        return set(index)
