"""Best: the k best scores of one query, collected block after block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from diffretriever.fusion import Ranking


class Best:
    """Collects scores and keeps the k best of them, together with everything that ties with the k-th.

    Ties must be kept until the ids are known, which decide among them.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._scores: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)]
        self._positions: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
        self._size = 0
        self._least = -np.inf

    def add(self, scores: npt.NDArray[np.float32], positions: npt.NDArray[np.integer]) -> None:
        """Take in the scores [n] of the passages at some positions [n], each position once in all calls."""
        keep = scores >= self._least
        self._scores.append(scores[keep])
        self._positions.append(positions[keep].astype(np.int64))
        self._size += len(self._scores[-1])
        if self._size > 4 * self._k:
            self._prune()

    def ranking(self, name: Callable[[int], str], *, floor: float | None) -> Ranking:
        """Return the k best; `name` gives the passage id of a position."""
        self._prune()
        ids = [name(p) for p in self._positions[0].tolist()]
        return Ranking.sort(ids, self._scores[0], k=self._k, floor=floor)

    def _prune(self) -> None:
        scores, positions = np.concatenate(self._scores), np.concatenate(self._positions)
        if len(scores) > self._k:
            self._least = float(np.partition(scores, -self._k)[-self._k])
            keep = scores >= self._least
            scores, positions = scores[keep], positions[keep]
        self._scores, self._positions, self._size = [scores], [positions], len(scores)
