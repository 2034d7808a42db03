"""Memory while a corpus of any size is encoded in a stream: it must not grow with the number of passages.

    python benchmarks/memory.py [--passages 1000000] [--model tiny] [--out FILE]

Short passages go through `encode_chunks` of a model that is so small that a million of them take minutes: what is
measured is what the stream keeps, which does not depend on the model. Printed is the resident memory after each tenth
of the corpus, and how much the most of the last half exceeds the most of the first. More than 5% makes the run fail.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from machine import machine
from records import write_record

from diffretriever.checkpoint import RetrieverSettings
from diffretriever.retriever import DiffRetriever
from diffretriever.studies.shapes import random_backbone

CHUNK, TENTHS, MOST_GROWTH = 1024, 10, 0.05
_SYLLABLES = ("ti", "mo", "gra", "yea", "bre", "gla", "en", "mar", "vi", "har", "oxy", "bri", "pla", "pro", "sun", "ke")


def texts(count: int, seed: int) -> Iterator[list[str]]:
    """Yield chunks of short passages, each made when it is asked for."""
    rng = random.Random(seed)  # noqa: S311  (no secret)
    for start in range(0, count, CHUNK):
        yield [_text(rng) for _ in range(min(CHUNK, count - start))]


def _text(rng: random.Random) -> str:
    """Return one to three words out of a million, so that whatever remembers words would grow."""
    return " ".join("".join(rng.choices(_SYLLABLES, k=5)) for _ in range(rng.randint(1, 3)))


def resident() -> int:
    """Return the bytes that this process holds in memory."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmRSS: memory is measured on Linux only")


def opened(model: str) -> DiffRetriever:
    """Return a retriever with one masked position: a checkpoint, or the tiny shape with random weights."""
    if model != "tiny":
        return DiffRetriever.from_pretrained(model, device="cpu", passage_slots=1)
    settings = RetrieverSettings(query_slots=1, passage_slots=1, tuned=True)
    return DiffRetriever(random_backbone("tiny-dream", device=torch.device("cpu"), dtype=torch.float32), settings)


def growth(sizes: Sequence[int]) -> float:
    """Return by which share the most of the last half of some sizes exceeds the most of the first half."""
    half = len(sizes) // 2
    return max(sizes[half:]) / max(sizes[:half]) - 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode and print the memory after each tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    retriever = opened(options.model)
    retriever.encode_passages(next(texts(CHUNK, options.seed)))
    print("| passages | resident, MB | processor seconds |\n|---|---|---|", flush=True)
    sizes: list[int] = []
    rows: list[dict[str, object]] = []
    done, started, step = 0, time.process_time(), max(CHUNK, options.passages // TENTHS)
    for representations in retriever.encode_chunks(texts(options.passages, options.seed)):
        done += len(representations)
        sizes.append(resident())
        if done % step < CHUNK or done == options.passages:
            rows.append({"name": "memory", "passages": done, "resident bytes": sizes[-1], "most so far": max(sizes)})
            print(f"| {done:,} | {sizes[-1] / 1e6:.1f} | {time.process_time() - started:.0f} |", flush=True)
    grown = growth(sizes)
    rows.append({"name": "growth", "passages": done, "share": grown})
    write_record(options.out, rows, threads=options.threads, seed=options.seed, model=options.model)
    print(f"\ngrowth of the last half over the first: {100 * grown:.1f}%; {machine('torch', 'transformers', 'numpy')}")
    if grown > MOST_GROWTH:
        raise SystemExit(f"memory grew by {100 * grown:.1f}%, more than {100 * MOST_GROWTH:.0f}%")


if __name__ == "__main__":
    main()
