"""IndexStats: what an index holds, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffretriever.index.manifest import Backend
from diffretriever.index.storage.storage import Storage
from diffretriever.representations import Provenance


@dataclass(frozen=True)
class IndexStats:
    """What an index holds.

    Attributes:
        path: its folder, or its address on a server; None when it lives in memory.
        backend: "edge", "exact" or "cluster".
        passages: number of passages.
        dim: width of the dense vectors; 0 when there are none.
        vocabulary_size: number of term ids; 0 when there are no sparse weights.
        storage: in what form the vectors are stored.
        disk_bytes: size of the folder on disk; 0 on a server, which does not tell.
        provenance: how the representations are made.
    """

    path: Path | str | None
    backend: Backend
    passages: int
    dim: int
    vocabulary_size: int
    storage: Storage
    disk_bytes: int
    provenance: Provenance


def disk_bytes(folder: Path) -> int:
    """Return the bytes that the files of a folder occupy on disk; preallocated but unwritten blocks do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # the engine removes files while it works
            continue
        total += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    return total
