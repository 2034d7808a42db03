"""What the slots of passages say, as a table.

    python benchmarks/slot_words.py mini COLLECTION --passages 20

One row for each of some passages, spread evenly over the collection: the likeliest word of each slot in order, a word
that an earlier slot said left out, and the heaviest terms of its sparse side.
"""

from __future__ import annotations

import argparse

import numpy as np

from diffretriever import DiffRetriever
from diffretriever.corpus import Passage
from diffretriever.evaluation.collections import open_collection
from diffretriever.representations import Representations

_TITLE = 70


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="mini, a folder or a hub id")
    parser.add_argument("collection", help="folder in BEIR's layout, or scifact")
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--terms", type=int, default=5, help="heaviest terms of each passage")
    arguments = parser.parse_args()
    passages = list(open_collection(arguments.collection).passages)
    chosen = [passages[i] for i in np.linspace(0, len(passages) - 1, min(arguments.passages, len(passages)), dtype=int)]
    model = DiffRetriever.from_pretrained(arguments.model)
    encoded = model.encode_passages(chosen, words=1, progress=False)
    print("| passage | slot words | terms |\n|---|---|---|")
    held = 0
    for i, passage in enumerate(chosen):
        said = list(dict.fromkeys(words[0].word for words in encoded.slot_words(i) if words))
        held += sum(word in passage.text.lower() or word in passage.title.lower() for word in said) / len(said)
        print(f"| {_title(passage)} | {', '.join(said)} | {', '.join(_terms(model, encoded, i, arguments.terms))} |")
    print(f"\n{held / len(chosen):.0%} of the words stand in their passage.")


def _title(passage: Passage) -> str:
    title = " ".join((passage.title or passage.text).replace("|", "/").split())
    return title if len(title) <= _TITLE else title[:_TITLE].rsplit(" ", 1)[0] + " ..."


def _terms(model: DiffRetriever, encoded: Representations, i: int, count: int) -> list[str]:
    weights = encoded.sparse[i]
    return [model.term(int(weights.indices[j])) for j in np.argsort(-weights.data, kind="stable")[:count]]


if __name__ == "__main__":
    main()
