"""The encoder on one GPU: models of 7B shapes with random weights made on the device, nothing downloaded.

    python benchmarks/gpu.py --out DIR                      # about five minutes on an H200
    python benchmarks/gpu.py --out DIR --tiny --device cpu  # the same steps on toy shapes, to try the script

Writes DIR/gpu.json after every measurement and prints Markdown. Measured: the matrix product rate of the device (the
yardstick); the forward passes over passages of 100 text tokens at K = 16, as a share of it; single queries at K = 1 and
16; greedy decoding as PromptReps does it, N = 1, 4 and 20, at batch 1 and 32, on the causal model of the same shape.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import machine

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.decoding import decode
from diffretriever.sequences import Batch, MaskedSequence, collate
from diffretriever.studies.shapes import SHAPES, random_backbone

TEXT_TOKENS, AROUND, TAIL = 100, 55, 3  # the paper's prompt takes 55 tokens around a passage and 3 after its masks
QUERY_TOKENS, QUERY_AROUND = 10, 54


@dataclass(frozen=True)
class Plan:
    """What is run: shapes, passages a batch, tokens a batch, repetitions, side of the matrices of the yardstick."""

    diffusion: tuple[str, ...]
    causal: str
    passages: int
    batch_tokens: int
    repeats: int
    matrix: int


FULL = Plan(("dream-7b", "llada-8b"), "qwen2.5-7b", 1200, 32768, 30, 8192)
TINY = Plan(("tiny-dream",), "tiny-qwen2", 12, 1024, 3, 256)


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Return the times of a call after two that warm up, the device waited for each time."""
    times = []
    for number in range(repeats + 2):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        if number > 1:
            times.append(time.perf_counter() - started)
    return times


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the FLOP/s of the best of some products of square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device, 10))


def body_flops(backbone: Backbone, lengths: Sequence[int], wanted: int) -> float:
    """Return the FLOPs that a packed forward pass needs: products with weights, and attention; no padding, no head."""
    layers = backbone.model.base_model.layers
    per_token = 2 * sum(p.numel() for n, p in layers[0].named_parameters() if p.dim() > 1)
    config = backbone.model.config
    width = config.num_attention_heads * layers[0].self_attn.head_dim
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    keys = 2 * sum(p.numel() for n, p in layers[0].named_parameters() if "k_proj.w" in n or "v_proj.w" in n)
    last = tokens * keys + wanted * len(lengths) * (per_token - keys) + 4 * width * wanted * tokens
    return (len(layers) - 1) * (tokens * per_token + 4 * width * pairs) + last


def batches(backbone: Backbone, count: int, length: int, slots: int, tokens: int, rng: random.Random) -> list[Batch]:
    """Return batches of random ids, the lengths spread by a tenth around `length`."""
    sequences = []
    for _ in range(count):
        text = rng.randint(round(length * 0.9), round(length * 1.1))
        ids = [rng.randrange(1000, 20000) for _ in range(text)]
        sequences.append(MaskedSequence((*ids, *([0] * slots), *([1] * TAIL)), text))
    per_batch = max(1, tokens // (length + slots + TAIL))
    pad = backbone.special.pad
    return [collate(sequences[i : i + per_batch], slots, pad) for i in range(0, count, per_batch)]


def passages(backbone: Backbone, plan: Plan, rate: float) -> dict[str, float]:
    """Measure packed encoding at K = 16, as passages a second and as a share of the matrix product rate."""
    device, rng = backbone.device, random.Random(0)  # noqa: S311  (no secret)
    work = batches(backbone, plan.passages, TEXT_TOKENS + AROUND, 16, plan.batch_tokens, rng)
    with torch.inference_mode():
        took = seconds(lambda: [backbone.hidden_at(batch) for batch in work], device, 2)
    flops = sum(body_flops(backbone, batch.lengths, 16) for batch in work)
    best = statistics.median(took)
    return {"passages/s": plan.passages / best, "TFLOP/s": flops / best / 1e12, "share of peak": flops / best / rate}


def single_query(backbone: Backbone, plan: Plan, slots: int, graphs: bool) -> dict[str, float]:
    """Measure one query of 10 text tokens: hidden states at its slots, with recorded graphs or without."""
    rng = random.Random(1)  # noqa: S311  (no secret)
    batch = batches(backbone, 1, QUERY_TOKENS + QUERY_AROUND, slots, 1, rng)[0]
    recorded, backbone.graphs = backbone.graphs, backbone.graphs if graphs else None
    with torch.inference_mode():
        took = seconds(lambda: backbone.hidden_at(batch), backbone.device, plan.repeats)
    backbone.graphs = recorded
    ordered = sorted(took)
    return {"median ms": 1000 * statistics.median(took), "p95 ms": 1000 * ordered[int(0.95 * (len(ordered) - 1))]}


def decoding(backbone: Backbone, plan: Plan, length: int, rows: int) -> dict[str, float]:
    """Measure greedy decoding of `length` tokens after a prompt as long as that of a query."""
    rng = random.Random(2)  # noqa: S311  (no secret)
    batch = batches(backbone, rows, QUERY_TOKENS + QUERY_AROUND, 1, 10**9, rng)[0].to(backbone.device)
    with torch.inference_mode():
        call = lambda: decode(backbone, batch.ids, batch.mask, length, ())  # noqa: E731
        took = seconds(call, backbone.device, max(2, plan.repeats // 6))
    return {"median ms": 1000 * statistics.median(took)}


def slots_of_many(backbone: Backbone, plan: Plan, slots: int, rows: int) -> dict[str, float]:
    """Measure a batch of queries through a diffusion model, beside `decoding`."""
    rng = random.Random(3)  # noqa: S311  (no secret)
    batch = batches(backbone, rows, QUERY_TOKENS + QUERY_AROUND, slots, 10**9, rng)[0]
    with torch.inference_mode():
        took = seconds(lambda: backbone.hidden_at(batch), backbone.device, max(2, plan.repeats // 6))
    return {"median ms": 1000 * statistics.median(took)}


def require_fast_paths(backbone: Backbone) -> None:
    """Raise where a GPU would measure something else than what the table says: padding, or no graphs."""
    if backbone.device.type == "cuda" and not (backbone.packs and backbone.graphs is not None):
        raise SystemExit(
            f"sequences are {'packed' if backbone.packs else 'padded'}, graphs are "
            f"{'off' if backbone.graphs is None else 'on'} here: torch {torch.__version__} lacks the kernel, install "
            "2.11 or later, or flash-attn"
        )


def measure(
    plan: Plan, device: torch.device, dtype: torch.dtype, write: Callable[[dict[str, dict[str, float]]], None]
) -> dict[str, dict[str, float]]:
    """Return every measurement by name; all of them are written after each."""
    found: dict[str, dict[str, float]] = {}

    def note(name: str, values: dict[str, float]) -> None:
        found[name] = values
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()), flush=True)
        write(found)

    rate = matrix_rate(device, dtype, plan.matrix)
    note("matrix products", {"TFLOP/s": rate / 1e12})
    for shape in plan.diffusion:
        backbone = random_backbone(shape, device=device, dtype=dtype)
        require_fast_paths(backbone)
        note(f"{shape}, passages, K = 16", passages(backbone, plan, rate))
        for slots in (1, 16):
            note(f"{shape}, one query, K = {slots}", single_query(backbone, plan, slots, graphs=True))
            note(f"{shape}, one query, K = {slots}, no graph", single_query(backbone, plan, slots, graphs=False))
        note(f"{shape}, 32 queries, K = 16", slots_of_many(backbone, plan, 16, 32))
        del backbone
        _free(device)
    backbone = random_backbone(plan.causal, device=device, dtype=dtype)
    for rows in (1, 32):
        for length in (1, 4, 20):
            note(f"{plan.causal}, decoding {length}, batch {rows}", decoding(backbone, plan, length, rows))
    return found


def targets(plan: Plan, found: dict[str, dict[str, float]]) -> list[str]:
    """Return the rows of the table of targets."""
    shape = plan.diffusion[0]
    one, sixteen = (found[f"{shape}, one query, K = {k}"]["median ms"] for k in (1, 16))
    slow = {n: found[f"{plan.causal}, decoding {n}, batch 1"]["median ms"] for n in (1, 4, 20)}
    many = {n: found[f"{plan.causal}, decoding {n}, batch 32"]["median ms"] for n in (1, 4, 20)}
    share = found[f"{shape}, passages, K = 16"]["share of peak"]
    return [
        "| | goal | measured |",
        "|---|---|---|",
        f"| {shape}, 100 text tokens, K = 16 | >= 60% of the matrix product rate | {100 * share:.0f}% |",
        f"| one query, K = 1 and 16 | <= 7 ms, and K = 16 <= 1.15 x K = 1 | {one:.2f}, {sixteen:.2f} ms, "
        f"{sixteen / one:.2f} x |",
        f"| against decoding N = 20, batch 1 | >= 15 x | {slow[20] / sixteen:.1f} x |",
        f"| decoding against its N = 1, batch 1: N = 4, 20 | | {slow[4] / slow[1]:.2f} x, {slow[20] / slow[1]:.2f} x |",
        f"| the same, batch 32 | | {many[4] / many[1]:.2f} x, {many[20] / many[1]:.2f} x |",
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes, for trying the script")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; `--tiny --device cpu` tries the script without one")
    plan = TINY if options.tiny else FULL
    started = time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    shapes = {s: dict(SHAPES[s]) for s in (*plan.diffusion, plan.causal)}
    options.out.mkdir(parents=True, exist_ok=True)

    def about() -> str:
        took = time.perf_counter() - started
        return f"{name}; {machine('torch', 'transformers')}; {took:.0f} s; random weights, bf16"

    def write(found: dict[str, dict[str, float]]) -> None:
        result = {"about": about(), "plan": asdict(plan), "shapes": shapes, "measured": found}
        (options.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    found = measure(plan, device, torch.bfloat16, write)
    print("\n".join([*targets(plan, found), "", about()]))


if __name__ == "__main__":
    main()
