"""Pairs: (query, passage) texts drawn from Parquet files by seed and step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffretriever.errors import CorpusError, MissingExtraError
from diffretriever.training.config import Recipe, Source

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
MIN_PIECE_WORDS = 5


class Pair(NamedTuple):
    """A query and a passage that answers it."""

    query: str
    passage: str


@dataclass(frozen=True)
class PairFile:
    """The texts of one source, read once.

    Attributes:
        queries: one per passage, or None where the file has passages alone.
        passages: the passages.
        sha256: digest of the file.
    """

    queries: Sequence[str] | None
    passages: Sequence[str]
    sha256: str

    @staticmethod
    def read(path: Path) -> PairFile:
        """Read a Parquet file with the columns `query` and `positive`, or with `text`."""
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingExtraError("pyarrow", "train", "reading training pairs") from error
        if not path.is_file():
            raise CorpusError(f"{path} does not exist; set `data` to the folder of the training files")
        table = pq.read_table(path)
        names = set(table.column_names)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if {"query", "positive"} <= names:
            return PairFile(table["query"].to_pylist(), table["positive"].to_pylist(), digest)
        if "text" in names:
            return PairFile(None, table["text"].to_pylist(), digest)
        raise CorpusError(f"{path} has the columns {sorted(names)}; expected query and positive, or text")


def cloze(passage: str, rng: np.random.Generator) -> Pair | None:
    """Return a piece of the passage as the query for the rest, or None where the passage has under three pieces.

    Inverse cloze task (Lee et al. 2019): in one of four draws the piece stays in, so that matching words stay useful.
    """
    pieces = SENTENCE_END.split(passage)
    long_enough = [i for i, piece in enumerate(pieces) if len(piece.split()) >= MIN_PIECE_WORDS]
    if len(pieces) < 3 or not long_enough:
        return None
    i = int(rng.choice(long_enough))
    rest = pieces if rng.random() < 0.25 else pieces[:i] + pieces[i + 1 :]
    return Pair(pieces[i], " ".join(rest))


class PairSchedule:
    """The pairs of every step of a run, a function of the recipe alone.

    A batch comes from one source, so that its negatives are of one kind. Within a pool of batches of one source,
    pairs are put together in groups of similar queries when `Recipe.group` > 1: the negatives are then hard ones.

    Args:
        recipe: sources, seed and sizes.
        files: one per source.
        embed: texts -> [N, D] unit vectors, the teacher's; needed for grouping.
    """

    def __init__(
        self,
        recipe: Recipe,
        files: Sequence[PairFile],
        embed: Callable[[Sequence[str]], npt.NDArray[np.float32]] | None = None,
    ) -> None:
        self._recipe = recipe
        self._files = files
        self._embed = embed
        self._pools: dict[int, tuple[int, list[list[Pair]]]] = {}
        self._source_of = _allot(recipe.sources, recipe.steps, np.random.default_rng([recipe.seed, 1]))
        self._permutations = [
            np.random.default_rng([recipe.seed, 2, s]).permutation(len(file.passages)) for s, file in enumerate(files)
        ]

    def source(self, step: int) -> int:
        """Return the number of the source that a step draws from."""
        return int(self._source_of[step])

    def batch(self, step: int) -> list[Pair]:
        """Return the pairs of one step; the same for the same recipe, in whatever order steps are asked for."""
        s = self.source(step)
        number, place = divmod(int((self._source_of[:step] == s).sum()), self._recipe.pool)
        if s not in self._pools or self._pools[s][0] != number:
            self._pools[s] = number, self._draw_pool(s, number)
        return self._pools[s][1][place]

    def _draw_pool(self, s: int, number: int) -> list[list[Pair]]:
        recipe = self._recipe
        size = recipe.pool * recipe.batch
        permutation = self._permutations[s]
        rng = np.random.default_rng([recipe.seed, 3, s, number])
        rows = [int(permutation[(number * size + i) % len(permutation)]) for i in range(size)]
        pairs = [self._pair(s, row, rng) for row in rows]
        chosen = [pairs[i] for i in self._grouped(pairs, rng)]
        return [chosen[i : i + recipe.batch] for i in range(0, size, recipe.batch)]

    def _pair(self, s: int, row: int, rng: np.random.Generator) -> Pair:
        file = self._files[s]
        passage = file.passages[row]
        wants_cloze = rng.random() < self._recipe.sources[s].cloze
        if wants_cloze and (pair := cloze(passage, rng)):
            return pair
        if file.queries is None:
            words = passage.split()
            return Pair(" ".join(words[:12]), passage)
        return Pair(file.queries[row], passage)

    def _grouped(self, pairs: Sequence[Pair], rng: np.random.Generator) -> list[int]:
        """Return an order in which every `group` pairs are each other's neighbours, groups shuffled."""
        group = self._recipe.group
        if group == 1 or self._embed is None:
            return [int(i) for i in rng.permutation(len(pairs))]
        vectors = self._embed([pair.query for pair in pairs])
        similarity = vectors @ vectors.T
        free = np.ones(len(pairs), dtype=bool)
        groups: list[list[int]] = []
        for seed in rng.permutation(len(pairs)):
            if not free[seed]:
                continue
            ranked = np.argsort(-np.where(free, similarity[seed], -np.inf), kind="stable")[:group]
            free[ranked] = False
            groups.append([int(i) for i in ranked])
        return [i for g in rng.permutation(len(groups)) for i in groups[g]]


def _allot(sources: Sequence[Source], steps: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the source of each step: shares by weight, as even as whole steps allow, in shuffled order."""
    weights = np.array([source.weight for source in sources], dtype=np.float64)
    edges = np.cumsum(weights / weights.sum()) * steps
    allotted = np.searchsorted(edges, np.arange(steps) + 0.5, side="right").clip(max=len(sources) - 1)
    return rng.permutation(allotted).astype(np.int64)
