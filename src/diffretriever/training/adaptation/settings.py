"""AdaptationSettings: everything that decides what an adaptation computes."""

from __future__ import annotations

from dataclasses import dataclass

from diffretriever.errors import InputError


@dataclass(frozen=True)
class AdaptationSettings:
    """Settings of one run.

    Attributes:
        base: what to start from: a folder or GGUF file, a name such as "minilm", or a hub id.
        texts: files of plain texts: Parquet or JSONL with `text`, `positive`, `contents` or `body`, or .txt with a
            text on every line.
        output: folder of checkpoints, results and the finished model.
        steps: optimiser steps.
        batch: texts of a step and process.
        accumulate: forward passes of `batch` texts that make one step.
        length: longest text in tokens, those around it included.
        prompt_share: share of the texts that stand in the retrieval prompt with its masked positions.
        prompt: template of the prompt; None for the usual one of the family.
        query_slots: K_q of that prompt.
        passage_slots: K_p of that prompt.
        least_rate: lower bound of the mask rate t, so that 1/t stays finite.
        learning_rate: peak rate; linear warm-up, then a cosine to 0.
        warmup: share of the steps in which the rate rises.
        weight_decay: of all matrices.
        clip: largest gradient norm.
        held_out: texts that are kept from training, for the cross entropy.
        rates: mask rates at which that is measured.
        evaluate_every: steps between two measurements.
        save_every: steps between two checkpoints.
        seed: decides every draw.
        bf16: products in bf16; the weights stay fp32.
        recompute: recompute activations in the backward pass, which saves memory.
    """

    base: str
    texts: tuple[str, ...]
    output: str
    steps: int = 1000
    batch: int = 32
    accumulate: int = 1
    length: int = 128
    prompt_share: float = 0.3
    prompt: str | None = None
    query_slots: int = 4
    passage_slots: int = 16
    least_rate: float = 1e-3
    learning_rate: float = 3e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    held_out: int = 256
    rates: tuple[float, ...] = (0.15, 0.5, 0.9)
    evaluate_every: int = 200
    save_every: int = 200
    seed: int = 1
    bf16: bool = True
    recompute: bool = False

    def __post_init__(self) -> None:
        if not self.texts:
            raise InputError("an adaptation needs at least one file of texts")
        for name in ("steps", "batch", "accumulate", "held_out", "evaluate_every", "save_every", "length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.prompt_share <= 1:
            raise InputError(f"prompt_share must be from 0 to 1, got {self.prompt_share}")
        for rate in (self.least_rate, *self.rates):
            if not 0 < rate <= 1:
                raise InputError(f"a mask rate must be above 0 and at most 1, got {rate}")
