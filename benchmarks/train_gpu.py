"""Training on one GPU: a 7B shape with random weights, LoRA and the paper's share of a batch; nothing downloaded.

    python benchmarks/train_gpu.py --out DIR                      # Dream-7B's shape
    python benchmarks/train_gpu.py --out DIR --shape llada-8b
    python benchmarks/train_gpu.py --out DIR --tiny --device cpu  # the same steps on a toy shape, to try the script

Writes DIR/train_gpu.json after every variant and prints Markdown. A step is the real one: rows drawn and tokenised,
forward and backward passes chunk by chunk, gradient clipping and AdamW. The paper's global batch of 128 queries with 16
passages each is 16 queries and 256 passages on each of eight GPUs. Texts are random words of MS MARCO's usual lengths.
All that the package and its extra `train` depend on is needed: rows are tokenised and their words found as in a run.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from records import write_record

from diffretriever.backbones.loading import load_backbone
from diffretriever.studies.shapes import RandomSource
from diffretriever.training.base import Base, recompute_layers
from diffretriever.training.building import BatchBuilder
from diffretriever.training.estimate import estimate_run, matrix_rate
from diffretriever.training.gathering import World
from diffretriever.training.lora import add_lora
from diffretriever.training.model_settings import LoraSettings
from diffretriever.training.module import RetrieverModule, build_module
from diffretriever.training.recipes import read_recipe
from diffretriever.training.rows import open_rows
from diffretriever.training.schedule import Schedule
from diffretriever.training.settings import TrainingSettings
from diffretriever.training.stepping import Engine, take_step

RECIPE = Path(__file__).parents[1] / "recipes" / "dream-7b-msmarco.yaml"
#: Words of a query and of a passage, which the tokeniser makes a few more tokens of.
QUERY_WORDS, PASSAGE_WORDS = 6, 56
SLOTS = {"llada-8b": (4, 4)}


@dataclass(frozen=True)
class Variant:
    """One way to take the same step."""

    one_pass: bool
    gradient_checkpointing: bool
    chunk: int


@dataclass(frozen=True)
class Plan:
    """Queries of a step, negatives of each, timed steps, and the ways to take them."""

    queries: int
    negatives: int
    steps: int
    variants: tuple[Variant, ...]


FULL = Plan(
    16, 15, 3, (Variant(True, True, 16), Variant(True, True, 64), Variant(False, True, 64), Variant(False, False, 8))
)
TINY = Plan(2, 3, 2, (Variant(True, True, 4), Variant(False, False, 4)))


def write_rows(folder: Path, plan: Plan, count: int, seed: int) -> None:
    """Write rows of random words in the layout of the recipe."""
    rng = random.Random(seed)  # noqa: S311  (no secret)
    words = ["planet", "river", "engine", "yeast", "violin", "market", "enzyme", "bridge", "ocean", "winter"]

    def text(length: int) -> str:
        spread = rng.randint(round(0.7 * length), round(1.3 * length))
        return " ".join(rng.choice(words) + rng.choice(["", "s", "ing"]) for _ in range(spread))

    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(count):
            row = {"query": text(QUERY_WORDS), "positive": text(PASSAGE_WORDS)}
            file.write(json.dumps({**row, "negative": [text(PASSAGE_WORDS) for _ in range(plan.negatives)]}) + "\n")


def settings_of(shape: str, plan: Plan, folder: Path) -> TrainingSettings:
    """Return the settings of the recipe on these rows."""
    slots = SLOTS.get(shape, (4, 16))
    changes = {
        "model.base": shape,
        "model.query_slots": slots[0],
        "model.passage_slots": slots[1],
        "data.folder": folder,
        "data.sources": "[{path: rows.jsonl}]",
        "data.negatives": plan.negatives,
        "optimisation.batch": plan.queries,
    }
    return read_recipe(RECIPE, [f"{key}={value}" for key, value in changes.items()])


def build(settings: TrainingSettings, source: RandomSource, device: torch.device) -> RetrieverModule:
    """Return the module of the recipe over random weights, adapters in it."""
    backbone = load_backbone(source, device=device, dtype=source.dtype, attention="sdpa")
    add_lora(backbone, settings.model.lora or LoraSettings(), settings.model.base)
    return build_module(Base(backbone, settings.model.checkpoint_settings(), None), settings.model, settings.seed)


def measure(settings: TrainingSettings, source: RandomSource, plan: Plan, device: torch.device) -> dict[str, float]:
    """Return the median seconds of a step and the peak memory, after one step that warms up."""
    module = build(settings, source, device).train()
    if settings.optimisation.gradient_checkpointing:
        recompute_layers(module.backbone)
    files = [open_rows(Path(settings.data.folder) / "rows.jsonl")]
    schedule = Schedule(settings, files)
    builder = BatchBuilder(settings, module, World(), None)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.optimisation.learning_rate, fused=True)
    engine = Engine(autocast=lambda: torch.autocast(device.type, torch.bfloat16))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times, tokens, losses = [], [], []
    for step in range(plan.steps + 1):
        _wait(device)
        started = time.perf_counter()
        inputs = builder.build(step, schedule.batch(step)).to(device)
        report = take_step(module, inputs, settings.loss, engine, one_pass=settings.optimisation.one_pass)
        torch.nn.utils.clip_grad_norm_(trained, settings.optimisation.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        _wait(device)
        if step:
            times.append(time.perf_counter() - started)
        tokens.append(sum(sum(chunk.batch.lengths) for chunk in inputs.chunks))
        losses.append(report.loss)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    seconds = statistics.median(times)
    return {"seconds": seconds, "tokens": statistics.mean(tokens), "peak GB": peak, "loss": losses[-1]}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", default="dream-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy shape, for trying the script")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; `--tiny --device cpu` tries the script without one")
    plan, shape = (TINY, "tiny-dream") if options.tiny else (FULL, options.shape)
    source = RandomSource(shape, device, torch.bfloat16, 1)
    rate, rows = matrix_rate(device), []
    print("| one pass | layers again | chunk | seconds | tokens/s | share of matrix rate | peak GB | estimated GB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), plan, plan.queries * (plan.steps + 1), seed=1)
        common = settings_of(shape, plan, Path(folder))
        for variant in plan.variants:
            settings = replace(common, optimisation=replace(common.optimisation, **asdict(variant)))
            estimate = estimate_run(settings, source, time_steps=False)
            try:
                found = measure(settings, source, plan, device)
            except torch.OutOfMemoryError:
                found = {"seconds": float("nan"), "tokens": 0.0, "peak GB": float("nan")}
            share = estimate.flops / found["seconds"] / rate
            figures = {**found, "share": share, "estimated GB": estimate.memory.total / 1e9}
            # JSON has no word for what was not measured but null.
            rows.append({**asdict(variant), **{k: None if math.isnan(v) else v for k, v in figures.items()}})
            write_record(
                options.out / "train_gpu.json", rows, shape=shape, plan=asdict(plan), matrix_rate=rate, seed=1,
                dtype="bf16 weights and products, fp32 adapters",
            )  # fmt: skip
            print(
                f"| {variant.one_pass} | {variant.gradient_checkpointing} | {variant.chunk} | {found['seconds']:.2f} | "
                f"{found['tokens'] / found['seconds']:.0f} | {share:.0%} | {found['peak GB']:.1f} | "
                f"{estimate.memory.total / 1e9:.1f} |",
                flush=True,
            )
            # What a variant leaves in reference cycles would count as the next one's.
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
