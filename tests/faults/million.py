# ruff: noqa: T201
"""A million tiny passages: time, memory and disk, printed every tenth.

    python -m tests.faults.million --backend edge --folder DIR

The exit code is 1 when more memory was taken than allowed, or what is found at the end is not what was written.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from diffretriever.corpus import Passage
from diffretriever.index import Equals, Index
from diffretriever.representations import Representations
from tests.index.hashing import VOCABULARY, HashEncoder

_DIM, _BATCH = 8, 10_000


def batch(first: int, count: int) -> tuple[list[Passage], Representations]:
    """Return passages with one vector and two terms each, which their number decides."""
    numbers = np.arange(first, first + count)
    vectors = np.random.default_rng(first).standard_normal((count, _DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    terms = np.sort(np.stack([numbers % 500, 500 + numbers // 500 % 400], axis=1), axis=1)
    sparse = sp.csr_matrix(
        (np.ones(2 * count, np.float32), terms.ravel(), np.arange(0, 2 * count + 1, 2)), shape=(count, VOCABULARY)
    )
    passages = [Passage(f"p{n}", f"text {n}", metadata={"n": n % 1000}) for n in numbers.tolist()]
    provenance = HashEncoder(dim=_DIM, passage_slots=1).provenance
    return passages, Representations(vectors, np.arange(count + 1), vectors.copy(), sparse, None, provenance)


def peak() -> float:
    """Return the most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """Return the memory that this process holds now, in MiB, and of it what is not backed by files."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize() / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["edge", "exact"], default="edge")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--limit", type=float, default=3000, help="MiB of memory, beside files, that may be taken")
    options = parser.parse_args()
    started, total = time.monotonic(), options.passages
    before = resident()
    with Index.create(options.folder, batch(0, 1)[1], backend=options.backend) as index:
        for first in range(0, total, _BATCH):
            index.add_representations(*batch(first, min(_BATCH, total - first)))
            if (first + _BATCH) % (total // 10) == 0:
                held = f"{resident() - before:.0f} MiB taken, peak {peak():.0f} MiB with files"
                print(f"{first + _BATCH:,}: {time.monotonic() - started:.0f} s, {held}", flush=True)
        most = resident() - before
        disk = index.stats().disk_bytes
    print(f"closed after {time.monotonic() - started:.0f} s, {disk / 2**20:.0f} MiB on disk", flush=True)
    started = time.monotonic()
    with Index.open(options.folder) as index:
        print(f"opened in {time.monotonic() - started:.1f} s")
        right = len(index) == total and _finds(index, total)
        started = time.monotonic()
        report = index.check()
        print(f"checked in {time.monotonic() - started:.0f} s: {report.passages:,} passages, {report.problems[:3]}")
        most = max(most, resident() - before)
    print(f"most memory taken, beside files: {most:.0f} MiB; peak with files: {peak():.0f} MiB; right: {right}")
    return int(not right or bool(report.problems) or most > options.limit)


def _finds(index: Index, total: int) -> bool:
    for number in (0, total // 2, total - 1):
        representations = batch(number // _BATCH * _BATCH, number % _BATCH + 1)[1].select([number % _BATCH])
        for mode in ("multi", "sparse"):
            started = time.monotonic()
            hits = index.search(representations, 300, mode, where=Equals("n", number % 1000), exact=True)  # type: ignore[arg-type]
            print(f"{mode} search in {time.monotonic() - started:.2f} s, {len(hits)} hits")
            if f"p{number}" not in {hit.passage_id for hit in hits}:
                return False
        if index.get(f"p{number}").passage.text != f"text {number}":
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
