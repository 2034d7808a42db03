"""Schedule: the examples of every step of a run, and its learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from diffretriever.training.drawing import Example, Streams, allot, draw_negatives, example_of, grouped
from diffretriever.training.rows import RowFile
from diffretriever.training.settings import TrainingSettings

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def count_steps(settings: TrainingSettings, rows: int) -> int:
    """Return the optimiser steps of a run over so many rows."""
    wanted = settings.optimisation
    return wanted.steps or max(1, math.ceil(wanted.epochs * rows / wanted.batch))


class Schedule:
    """The examples of every step, a function of the settings and the files alone.

    A batch comes from one source, so that its negatives are of one kind. Within a pool of batches of one source,
    rows are put together in groups of similar queries when `data.group` > 1: the in-batch negatives are then hard ones.

    Attributes:
        steps: optimiser steps of the run.

    Args:
        settings: sources, seed and sizes.
        files: one per source.
        embed: queries -> [N, D] unit vectors, the teacher's; needed for groups.
        agreed: what makes an order that all processes share of one that each computed.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        files: Sequence[RowFile],
        embed: Embed | None = None,
        agreed: Callable[[list[int]], list[int]] = list,
    ) -> None:
        self._data, self._batch = settings.data, settings.optimisation.batch
        self._files, self._embed, self._agreed = files, embed, agreed
        self._streams = Streams(settings.seed)
        self.steps = count_steps(settings, sum(map(len, files)))
        weights = [len(f) if s.weight is None else s.weight for s, f in zip(self._data.sources, files, strict=True)]
        self._source_of = allot(weights, self.steps, self._streams.sources())
        self._pools: dict[int, tuple[int, list[list[Example]]]] = {}
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def source(self, step: int) -> int:
        """Return the number of the source that a step draws from."""
        return int(self._source_of[step])

    def batch(self, step: int) -> list[Example]:
        """Return the examples of one step, of all processes; the same in whatever order steps are asked for."""
        s = self.source(step)
        number, place = divmod(int((self._source_of[:step] == s).sum()), self._pool_size)
        if s not in self._pools or self._pools[s][0] != number:
            self._pools[s] = number, self._draw_pool(s, number)
        return self._pools[s][1][place]

    @property
    def _pool_size(self) -> int:
        return self._data.pool if self._data.group > 1 else 1

    def _draw_pool(self, s: int, number: int) -> list[list[Example]]:
        size = self._pool_size * self._batch
        rng = self._streams.pool(s, number)
        examples = [self._example(s, number * size + i, rng) for i in range(size)]
        order = list(range(size))
        if self._data.group > 1 and self._embed is not None:
            order = self._agreed(grouped(self._embed([e.query for e in examples]), self._data.group, rng))
        chosen = [examples[i] for i in order]
        return [chosen[i : i + self._batch] for i in range(0, size, self._batch)]

    def _example(self, s: int, place: int, rng: np.random.Generator) -> Example:
        """Return the example at a place of the endless sequence of a source's rows."""
        epoch, position = divmod(place, len(self._files[s]))
        number = int(self._order(s, epoch)[position])
        row = self._files[s][number]
        negatives = draw_negatives(row.negatives, self._data.negatives, epoch, self._streams.negatives(s, number))
        chosen = 0
        if len(row.positives) > 1:
            chosen = int(self._streams.positive(s, number, epoch).integers(len(row.positives)))
        return example_of(row, negatives, self._data.sources[s].cloze, rng, chosen)

    def _order(self, s: int, epoch: int) -> npt.NDArray[np.int64]:
        if s not in self._orders or self._orders[s][0] != epoch:
            self._orders[s] = epoch, self._streams.order(s, epoch).permutation(len(self._files[s]))
        return self._orders[s][1]


def rate(step: int, steps: int, warmup: float, schedule: str = "cosine") -> float:
    """Return the factor of the peak learning rate: linear rise over `warmup * steps`, then a cosine or line to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, steps - rise))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
