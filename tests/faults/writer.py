"""The process that is killed: it writes to an index and notes what it begins and what has returned."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from diffretriever.corpus import Passage
from diffretriever.index import Index
from tests.faults.inspection import make_encoder, random_text
from tests.faults.model import Operation

IDS = [*(f"p{i}" for i in range(150)), "../up", "a/b\\c", "nul\x00", "日本語🌙", " ", "x" * 300]
_KINDS = {
    "add": 40,
    "update": 12,
    "set_metadata": 14,
    "delete": 16,
    "maintain": 12,
    "snapshot": 6,
    "reopen": 6,
    "repair": 2,
}


class Journal:
    """Lines on disk, each synchronised before the next step, and one byte per line for the parent to wait on."""

    def __init__(self, path: Path, signal: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._signal = signal

    def note(self, **line: Any) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)
        os.write(self._signal, b".")


def make_small_steps() -> None:
    """Let the engines reorganise after few writes and split small ones, so that kills strike there too."""
    from diffretriever.index.edge import store as edge
    from diffretriever.index.exact import store as exact

    edge._OPTIMIZE_LEAST, edge._OPTIMIZE_SHARE, edge._WRITE_NUMBERS = 40, 0.05, 100
    exact.MAX_SEGMENTS, exact._DEAD_LEAST = 3, 30


def write_forever(folder: Path, journal: Journal, rng: random.Random) -> None:
    """Open the index and change it at random until killed."""
    make_small_steps()
    journal.note(opening=True)
    index = Index.open(folder, make_encoder())
    number = 0
    while True:
        number += 1
        operation = _random_operation(index, rng, f"{os.getpid()}-{number}")
        journal.note(begin=number, operation=operation.to_json())
        if operation.kind == "reopen":
            index.close()
            index = Index.open(folder, make_encoder())
        else:
            perform(index, operation, folder.parent, rng.randint(1, 6))
        journal.note(done=number)


def perform(index: Index, operation: Operation, snapshots: Path, batch_size: int) -> None:
    """Carry an operation out."""
    if operation.kind == "add":
        index.add(operation.passages, batch_size=batch_size, words=1)
    elif operation.kind == "update":
        index.update(operation.passages, words=1)
    elif operation.kind == "set_metadata":
        index.set_metadata(operation.metadata)
    elif operation.kind == "delete":
        index.delete(operation.ids, missing_ok=True)
    elif operation.kind == "snapshot":
        index.snapshot(snapshots / operation.folder)
    elif operation.kind == "repair":
        if problems := index.check(repair=True).problems:
            raise AssertionError(f"nothing was damaged, and yet: {problems}")
    else:
        index._store.maintain()
        index.flush()


def _random_operation(index: Index, rng: random.Random, mark: str) -> Operation:
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    present = sorted(index)
    if kind == "add":
        return Operation(kind, tuple(_passage(i, rng, mark) for i in rng.sample(IDS, rng.randint(1, 12))))
    if kind == "update":
        chosen = rng.sample(present, min(len(present), rng.randint(1, 4)))
        passages = [_passage(i, rng, mark) for i in chosen]
        # Half of them keep their text, which takes the way of new metadata alone.
        kept = [index.get(p.passage_id).passage if rng.random() < 0.5 else p for p in passages]
        return Operation(
            kind,
            tuple(Passage(p.passage_id, k.text, k.title, p.metadata) for p, k in zip(passages, kept, strict=True)),
        )
    if kind == "set_metadata":
        chosen = rng.sample(present, min(len(present), rng.randint(1, 4)))
        return Operation(kind, metadata={i: _metadata(rng, mark) for i in chosen})
    if kind == "delete":
        return Operation(kind, ids=tuple(rng.sample(IDS, rng.randint(1, 8))))
    return Operation(kind, folder=f"snapshot-{mark}" if kind == "snapshot" else "")


def _passage(passage_id: str, rng: random.Random, mark: str) -> Passage:
    return Passage(passage_id, random_text(rng), f"title {mark}", _metadata(rng, mark))


def _metadata(rng: random.Random, mark: str) -> dict[str, Any]:
    return {"parity": rng.randint(0, 1), "mark": mark, "tags": ["a", mark]}
