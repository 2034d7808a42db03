"""Batch: the inputs of one optimiser step, as chunks of texts of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffretriever.conventions import Side
from diffretriever.sequences import Batch

SIDES: tuple[Side, Side] = ("query", "passage")


class LocalLosses(NamedTuple):
    """One value for each objective that looks at single texts.

    Attributes:
        vectors: distance from the teacher's vector.
        parts: distance from the teacher's vectors of the parts of a text.
        part_scores: divergence from the teacher's likeness of these parts.
        words: cross entropy of the words that slots should say.
        terms: distance from lexical term weights.
        diversity: cosine between different slots.
        denoising: cross entropy of corrupted tokens.
    """

    vectors: float = 0.0
    parts: float = 0.0
    part_scores: float = 0.0
    words: float = 0.0
    terms: float = 0.0
    diversity: float = 0.0
    denoising: float = 0.0


@dataclass(frozen=True)
class Noised:
    """Corrupted copies of texts, to be restored.

    Attributes:
        batch: framed texts, some of their tokens replaced by the mask.
        rows: [M] which sequence each masked token stands in.
        positions: [M] where the model speaks of it.
        tokens: [M] the token that was there.
        factors: [M] 1 / (t * length) of its text.
    """

    batch: Batch
    rows: Tensor
    positions: Tensor
    tokens: Tensor
    factors: Tensor


@dataclass(frozen=True)
class Chunk:
    """B texts of one side that go through the model together.

    Attributes:
        side: which side.
        rows: where the texts stand in the own part of the batch.
        batch: the framed texts.
        content: [B, R] content ids, padded with -1; None where no objective weighs terms.
        factors: [B, R] what their weights are multiplied by; None for nothing.
        weights: [B, R] what their weights should be before that; None for no target.
        words: [B, K] the vocabulary id that each slot should say, -100 for none; None for no target.
        offset: [V] added to the word logits; None without `words`.
        matched: whether words are matched to the slots that say them best.
        teacher: [B, D'] the teacher's vectors; None for no target.
        aligned: whether the texts' mean slots should be those vectors.
        parts: [B, K, D] the teacher's vectors of the parts of a text; None for no target.
        part_temperature: by which slots are compared with them.
        diversity: whether slots should differ.
        noised: corrupted copies of the texts; None for none.
    """

    side: Side
    rows: tuple[int, ...]
    batch: Batch
    content: Tensor | None = None
    factors: Tensor | None = None
    weights: Tensor | None = None
    words: Tensor | None = None
    offset: Tensor | None = None
    matched: bool = False
    teacher: Tensor | None = None
    aligned: bool = False
    parts: Tensor | None = None
    part_temperature: float = 1.0
    diversity: bool = False
    noised: Noised | None = None

    def to(self, device: torch.device) -> Chunk:
        """Return the chunk on a device."""
        noised = self.noised
        if noised is not None:
            parts = (noised.rows, noised.positions, noised.tokens, noised.factors)
            noised = Noised(noised.batch.to(device), *(t.to(device, non_blocking=True) for t in parts))
        return replace(
            self,
            batch=self.batch.to(device),
            content=_moved(self.content, device),
            factors=_moved(self.factors, device),
            weights=_moved(self.weights, device),
            words=_moved(self.words, device),
            offset=_moved(self.offset, device),
            teacher=_moved(self.teacher, device),
            parts=_moved(self.parts, device),
            noised=noised,
        )


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class StepInputs:
    """What one process needs for one optimiser step.

    Attributes:
        step: number of the step, from 0.
        chunks: the process's texts.
        queries: texts of the process's queries, cut to what the model sees, in order.
        passages: those of its passages: each query's positive, then its negatives.
        query_counts: queries of every process.
        passage_counts: passages of every process.
        targets: [N] number of each query's positive among the passages of all processes.
        duplicates: [N, P] passages that are no negatives of a query since they have its positive's text; or None.
        counts: per side, over how many items the process's local losses are summed.
    """

    step: int
    chunks: tuple[Chunk, ...]
    queries: tuple[str, ...]
    passages: tuple[str, ...]
    query_counts: tuple[int, ...]
    passage_counts: tuple[int, ...]
    targets: Tensor
    duplicates: Tensor | None
    counts: tuple[LocalLosses, LocalLosses]

    def to(self, device: torch.device) -> StepInputs:
        """Return the inputs on a device."""
        return replace(
            self,
            chunks=tuple(chunk.to(device) for chunk in self.chunks),
            targets=self.targets.to(device),
            duplicates=_moved(self.duplicates, device),
        )


def chunked(lengths: Sequence[int], size: int, longest: int | None = None) -> list[list[int]]:
    """Return positions of texts in chunks of at most `size`, by rising length: little padding, equal on every run.

    Args:
        lengths: of the texts.
        size: texts of a chunk at most.
        longest: how many texts the process with the most has: all make as many chunks, since processes that share the
            parameters wait for each other in every forward pass.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    count = min(len(order), -(-max(len(order), longest or 0) // size))
    edges = [len(order) * i // max(1, count) for i in range(count + 1)]
    return [order[start:end] for start, end in pairwise(edges)]
