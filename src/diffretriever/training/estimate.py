"""Estimate: what a run will cost in tokens, memory and time, before anything starts."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.hardware import default_device
from diffretriever.backbones.loading import native_config, special_ids
from diffretriever.backbones.sources import FolderSource, Source
from diffretriever.backbones.specs import spec_for
from diffretriever.checkpoint import locate
from diffretriever.errors import InputError
from diffretriever.training.base import Base
from diffretriever.training.batch import SIDES, chunked
from diffretriever.training.module import RetrieverModule, build_module, text_room
from diffretriever.training.rows import open_rows
from diffretriever.training.schedule import Schedule
from diffretriever.training.settings import TrainingSettings
from diffretriever.training.texts import TextPreparer

#: Steps whose texts are tokenised for the estimate, at most; and queries.
_STEPS, _QUERIES = 4, 512
#: Parameters up to which real steps are timed.
_SMALL = 300_000_000
#: Share of the rate of large matrix products that training reaches, an assumption where no step is timed.
UTILISATION = 0.4
_HALF: Literal[2] = 2
_SINGLE: Literal[4] = 4


@dataclass(frozen=True)
class TokenCount:
    """Tokens of a step over all processes, means of a sample of steps.

    Attributes:
        queries: tokens of all query sequences, prompt and slots included.
        passages: tokens of all passage sequences.
        computed: tokens that go through the model, padding included.
        longest: tokens of the longest sequence.
        chunk: tokens of the largest chunk, padding included.
        slots: masked positions of that chunk.
    """

    queries: float
    passages: float
    computed: float
    longest: int
    chunk: int
    slots: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: of the model.
        gradients: of the trained weights, fp32.
        optimiser: two moments of AdamW, fp32.
        activations: what the backward pass needs; roughly.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.gradients + self.optimiser + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        rows: rows of all files.
        steps: optimiser steps.
        tokens: of a step.
        parameters: of the model.
        trainable: parameters that are trained.
        memory: on one device, as the recipe says.
        other_memory: with gradient checkpointing if the recipe goes without, and the other way round.
        flops: of a step, all processes together.
        step_seconds: seconds of a step on this machine.
        timed: whether real steps were timed; else seconds come of FLOPs and the measured rate of matrix products.
        device: what it was estimated on.
    """

    rows: int
    steps: int
    tokens: TokenCount
    parameters: int
    trainable: int
    memory: Memory
    other_memory: Memory
    flops: float
    step_seconds: float
    timed: bool
    device: str


def estimate_run(
    settings: TrainingSettings, source: Source | None = None, *, processes: int = 1, time_steps: bool = True
) -> Estimate:
    """Return what a run will cost.

    The model is built without weights, so that a 7B model is estimated on a laptop. Tokens are those of real batches
    of the recipe, seconds those of real steps if the model is small.

    Args:
        settings: the run.
        source: config and tokeniser of the base, where they are not in the base's own folder.
        processes: devices that share a step.
        time_steps: whether real steps of a small model are timed.

    Raises:
        CorpusError: a file of texts cannot be used.
        CheckpointError: the base cannot be found.
    """
    files = [open_rows(Path(settings.data.folder) / s.path, s.format) for s in settings.data.sources]
    own = source or FolderSource(locate(settings.model.base))
    module = hollow_module(settings, own)
    schedule = Schedule(settings, files)
    tokens = count_tokens(settings, module, schedule)
    parameters = sum(p.numel() for p in module.parameters())
    trainable = _trainable(settings, module)
    other = replace(
        settings,
        optimisation=replace(
            settings.optimisation, gradient_checkpointing=not settings.optimisation.gradient_checkpointing
        ),
    )
    memory, other_memory = (_memory(s, module, tokens, parameters, trainable, processes) for s in (settings, other))
    device = default_device()
    # Embeddings are looked up, and the head is multiplied at few positions and rows.
    body = sum(p.numel() for n, p in module.backbone.model.named_parameters() if not _outside(n))
    flops = step_flops(settings, body, tokens)
    timed = time_steps and source is None and parameters <= _SMALL and processes == 1
    seconds = _timed_step(settings) if timed else flops / processes / (UTILISATION * matrix_rate(device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Estimate(
        rows=sum(map(len, files)),
        steps=schedule.steps,
        tokens=tokens,
        parameters=parameters,
        trainable=trainable,
        memory=memory,
        other_memory=other_memory,
        flops=flops,
        step_seconds=seconds,
        timed=timed,
        device=name,
    )


def hollow_module(settings: TrainingSettings, source: Source) -> RetrieverModule:
    """Return the module that the run would train, its backbone without memory for weights."""
    import transformers

    config_json: dict[str, Any] = source.config()
    spec = spec_for(str(config_json.get("model_type")))
    tokenizer = source.tokenizer()
    config = native_config(spec, config_json, source.path)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, spec.architecture)(config)
    special = special_ids(spec, config_json, tokenizer, source.path, config.vocab_size)
    backbone = Backbone(model, spec, tokenizer, special, fingerprint="")
    wanted = replace(settings.model, slot_start="random" if settings.model.slot_embeddings else "auto")
    return build_module(Base(backbone, settings.model.checkpoint_settings(), None), wanted, settings.seed)


def count_tokens(settings: TrainingSettings, module: RetrieverModule, schedule: Schedule) -> TokenCount:
    """Return the tokens of a step, of the first steps of the schedule; of a large batch, of its first queries."""
    preparer = TextPreparer(module.encoder, words=False)
    steps = range(min(_STEPS, schedule.steps))
    totals = {side: 0.0 for side in SIDES}
    computed, longest, chunk, slots = 0.0, 0, 0, 0
    for step in steps:
        batch = schedule.batch(step)
        examples = batch[:_QUERIES]
        share = len(batch) / len(examples)
        passages = [p for e in examples for p in (e.positive, *e.negatives)]
        texts = {"query": [e.query for e in examples], "passage": passages}
        for side in SIDES:
            frame = module.encoder.frames[side]
            limit = text_room(module, side, settings.data.text_limit(side, step))
            prepared = preparer.prepare(texts[side], side, limit)
            lengths = [len(frame.wrap(text.ids).ids) for text in prepared]
            totals[side] += share * sum(lengths)
            longest = max(longest, *lengths)
            for rows in chunked(lengths, settings.optimisation.chunk):
                padded = len(rows) * max(lengths[r] for r in rows)
                computed += share * padded
                if padded > chunk:
                    chunk, slots = padded, len(rows) * frame.slots
    count = len(steps)
    return TokenCount(totals["query"] / count, totals["passage"] / count, computed / count, longest, chunk, slots)


def step_flops(settings: TrainingSettings, parameters: int, tokens: TokenCount) -> float:
    """Return the FLOPs of the products with weights in one step, attention left out.

    A forward pass takes 2 per weight and token; the backward pass as many for the gradients of activations, and as
    many again for those of weights, which LoRA does not need of the base. Recomputing layers, and chunks that go
    through twice, cost one more forward pass each.
    """
    wanted = settings.optimisation
    passes = 2 + (settings.model.lora is None) + wanted.gradient_checkpointing + (not wanted.one_pass)
    return 2.0 * passes * parameters * tokens.computed


def activation_bytes(
    config: Any,  # noqa: ANN401  (a config of any family)
    tokens: int,
    sequences: int,
    *,
    recompute: bool,
    number: Literal[2, 4],
    eager: bool,
) -> float:
    """Return the bytes that a backward pass through all layers needs.

    Counted per layer and token: inputs of the norms, of the products and of the gate (after Korthikanti et al. 2022);
    plain attention also keeps its weights. With recomputing, the input of each layer and one layer in full.

    Args:
        config: of the model.
        tokens: padded tokens.
        sequences: sequences they make up.
        recompute: whether layers are computed again.
        number: bytes of a number.
        eager: whether attention weights are kept.
    """
    width, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or width // heads
    gated = 3 if hasattr(config, "rms_norm_eps") else 2
    per_token = (6 * width + (2 * heads + 2 * keys) * head + (gated + 1) * inner) * number + 2 * width * _SINGLE
    layer = tokens * per_token
    if eager:
        layer += heads * tokens * math.ceil(tokens / max(1, sequences)) * (number + _SINGLE)
    total: float = layer + layers * tokens * width * number if recompute else layers * layer
    return total


def _memory(
    settings: TrainingSettings,
    module: RetrieverModule,
    tokens: TokenCount,
    parameters: int,
    trainable: int,
    processes: int,
) -> Memory:
    wanted, lora = settings.optimisation, settings.model.lora is not None
    single = settings.model.dtype == "float32" or (settings.model.dtype == "auto" and not (lora and wanted.bf16))
    number: Literal[2, 4] = _HALF if wanted.bf16 else _SINGLE
    together = math.ceil(tokens.computed / processes) if wanted.one_pass else tokens.chunk
    sequences = max(1, round(together / max(1, tokens.chunk / settings.optimisation.chunk)))
    activations = activation_bytes(
        module.backbone.model.config,
        together,
        sequences,
        recompute=wanted.gradient_checkpointing,
        number=number,
        eager=settings.model.attention == "eager" or default_device().type == "cpu",
    )
    if settings.loss.words:
        activations += 2 * tokens.slots * module.backbone.vocabulary_size * _SINGLE
    base = parameters if not lora else parameters - trainable
    weights = base * (_SINGLE if single else _HALF) + (trainable * _SINGLE if lora else 0)
    return Memory(weights, trainable * _SINGLE, 2 * trainable * _SINGLE, activations)


def _trainable(settings: TrainingSettings, module: RetrieverModule) -> int:
    """Return how many parameters the run trains, adapters that are not built yet included."""
    lora = settings.model.lora
    slots = 0 if module.slot_embeddings is None else module.slot_embeddings.numel()
    if lora is None:
        if not settings.loss.needs_head:
            module.freeze_head()
        return sum(p.numel() for p in module.parameters() if p.requires_grad)
    targets = lora.targets or module.backbone.spec.lora_targets
    found = [
        layer
        for name, layer in module.backbone.model.named_modules()
        if isinstance(layer, nn.Linear) and any(name == t or name.endswith(f".{t}") for t in targets)
    ]
    if not found:
        raise InputError(f"model.lora.targets {', '.join(targets)} name no layer of the base")
    return slots + sum(lora.r * (layer.in_features + layer.out_features) for layer in found)


def matrix_rate(device: torch.device) -> float:
    """Return the FLOP/s of large matrix products, in bf16 on a GPU and in fp32 elsewhere."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best


def _outside(name: str) -> bool:
    return "embed" in name or ".predictions." in name or name.startswith("lm_head.")


def _timed_step(settings: TrainingSettings) -> float:
    """Return the seconds of a step of the real run, the second of two, optimiser included."""
    from diffretriever.training.run import prepare

    with tempfile.TemporaryDirectory(prefix="diffretriever-") as folder:
        trainer, _ = prepare(replace(settings, output=folder, evaluation=None))
        optimiser = trainer.create_optimizer()
        trainer.model = trainer.accelerator.prepare(trainer.model)
        times = []
        for _, inputs in zip(range(2), trainer.get_train_dataloader(), strict=False):
            _wait(trainer.args.device)
            started = time.perf_counter()
            trainer.training_step(trainer.model, inputs)
            optimiser.step()
            optimiser.zero_grad()
            _wait(trainer.args.device)
            times.append(time.perf_counter() - started)
        trainer.accelerator.free_memory()
    return times[-1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table_rows(estimate: Estimate) -> Sequence[tuple[str, str]]:
    """Return the lines of the table that a dry run shows."""
    tokens, hours = estimate.tokens, estimate.steps * estimate.step_seconds / 3600
    total = (tokens.queries + tokens.passages) * estimate.steps
    how = "two real steps" if estimate.timed else f"FLOPs at {UTILISATION:.0%} of its matrix products"
    return [
        ("rows", f"{estimate.rows:,}"),
        ("steps", f"{estimate.steps:,}"),
        ("tokens of a step", f"{tokens.queries:,.0f} of queries, {tokens.passages:,.0f} of passages"),
        ("  computed, with padding", f"{tokens.computed:,.0f}; longest sequence {tokens.longest:,}"),
        ("tokens of the run", f"{total:,.0f}"),
        ("parameters", f"{estimate.parameters:,}, trained {estimate.trainable:,}"),
        *_memory_rows(estimate.memory),
        ("  the other way of checkpointing layers", f"{_gigabytes(estimate.other_memory.total)} in all"),
        ("FLOPs of a step", f"{estimate.flops:.3g}"),
        ("seconds of a step", f"{estimate.step_seconds:,.3g} on {estimate.device} ({how})"),
        ("hours", f"{hours:,.2g}"),
    ]


def _memory_rows(memory: Memory) -> Sequence[tuple[str, str]]:
    parts: Mapping[str, float] = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "activations": memory.activations,
    }
    shown = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items())
    return [("memory of a device", f"{_gigabytes(memory.total)} in all"), ("  of these", shown)]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
