"""Drawing: which rows, negatives and pieces of text come when, a function of the seed alone, in every process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffretriever.training.rows import TrainingRow

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
_MIN_PIECE_WORDS = 5
#: Words of a text that stand for its query where a file has none and no piece can be taken out.
_FIRST_WORDS = 12


class Example(NamedTuple):
    """A query, a passage that answers it, and hard negatives."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()


class Streams:
    """Generators by purpose, each seeded by numbers, never by `hash`, which differs from process to process.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def sources(self) -> np.random.Generator:
        """Return the generator that spreads sources over steps."""
        return np.random.default_rng([self._seed, 1])

    def order(self, source: int, epoch: int) -> np.random.Generator:
        """Return the generator that shuffles the rows of a source."""
        return np.random.default_rng([self._seed, 2, source, epoch])

    def pool(self, source: int, number: int) -> np.random.Generator:
        """Return the generator of a pool's cloze queries and groups."""
        return np.random.default_rng([self._seed, 3, source, number])

    def negatives(self, source: int, row: int) -> np.random.Generator:
        """Return the generator that shuffles a row's negatives."""
        return np.random.default_rng([self._seed, 4, source, row])

    def positive(self, source: int, row: int, epoch: int) -> np.random.Generator:
        """Return the generator that chooses a row's positive."""
        return np.random.default_rng([self._seed, 5, source, row, epoch])

    def noise(self, step: int, passage: int) -> np.random.Generator:
        """Return the generator that corrupts a passage."""
        return np.random.default_rng([self._seed, 6, step, passage])


def draw_negatives(negatives: Sequence[str], count: int, epoch: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Return `count` of a row's negatives, others in every epoch until all have come; fewer only if it has none.

    Args:
        negatives: the row's own.
        count: how many are wanted.
        epoch: number of the pass over the rows, from 0.
        rng: the row's generator, the same in every epoch.
    """
    if not negatives or not count:
        return ()
    order = rng.permutation(len(negatives))
    first = epoch * count
    return tuple(negatives[order[(first + i) % len(order)]] for i in range(count))


def example_of(
    row: TrainingRow, negatives: tuple[str, ...], cloze_share: float, rng: np.random.Generator, chosen: int = 0
) -> Example:
    """Return what is trained on of a row.

    Args:
        row: the row.
        negatives: those drawn.
        cloze_share: probability that the query is a piece of the passage.
        rng: decides that.
        chosen: number of the positive.
    """
    passage = row.positives[chosen]
    wants_cloze = rng.random() < cloze_share
    if wants_cloze and (pair := cloze(passage, rng)):
        return pair._replace(negatives=negatives)
    if row.query is None:
        return Example(" ".join(passage.split()[:_FIRST_WORDS]), passage, negatives)
    return Example(row.query, passage, negatives)


def cloze(passage: str, rng: np.random.Generator) -> Example | None:
    """Return a piece of the passage as the query for the rest, or None where the passage has under three pieces.

    Inverse cloze task (Lee et al. 2019): in one of four draws the piece stays in, so that matching words stay useful.
    """
    pieces = _SENTENCE_END.split(passage)
    long_enough = [i for i, piece in enumerate(pieces) if len(piece.split()) >= _MIN_PIECE_WORDS]
    if len(pieces) < 3 or not long_enough:
        return None
    i = int(rng.choice(long_enough))
    rest = pieces if rng.random() < 0.25 else pieces[:i] + pieces[i + 1 :]
    return Example(pieces[i], " ".join(rest))


def allot(weights: Sequence[float], steps: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the source of each step: shares by weight, as even as whole steps allow, in shuffled order."""
    shares = np.asarray(weights, dtype=np.float64)
    edges = np.cumsum(shares / shares.sum()) * steps
    allotted = np.searchsorted(edges, np.arange(steps) + 0.5, side="right").clip(max=len(shares) - 1)
    return rng.permutation(allotted).astype(np.int64)


def grouped(vectors: npt.NDArray[np.float32], size: int, rng: np.random.Generator) -> list[int]:
    """Return an order in which every `size` rows are each other's neighbours, groups shuffled.

    Args:
        vectors: [N, D] unit vectors, N a multiple of `size`.
        size: rows of a group.
        rng: decides who comes first.
    """
    similarity = vectors @ vectors.T
    free = np.ones(len(vectors), dtype=bool)
    groups: list[list[int]] = []
    for first in rng.permutation(len(vectors)):
        if not free[first]:
            continue
        ranked = np.argsort(-np.where(free, similarity[first], -np.inf), kind="stable")[:size]
        free[ranked] = False
        groups.append([int(i) for i in ranked])
    return [i for g in rng.permutation(len(groups)) for i in groups[g]]
