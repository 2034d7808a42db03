"""Calibration: how many candidates an approximate search must score for a wanted recall, measured on the index itself.

An approximate search ranks all passages by something cheap (their pooled vectors, or codes), scores the best `depth` of
them by MaxSim, and returns the best of those. Its recall is the share of the truly best passages that are among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

#: Note that keeps the calibration of an index.
CALIBRATION_NOTE = "calibration.json"
#: Recall that an approximate search aims at unless told otherwise.
RECALL = 0.99
#: How much an index may grow or shrink before what was measured no longer holds.
GROWTH = 1.5


@dataclass(frozen=True)
class Recall:
    """What an approximate search of one depth finds.

    Attributes:
        depth: candidates that are scored by MaxSim; 0 stands for all passages.
        k: length of the rankings that are compared.
        mean: mean share of the truly k best passages that are found.
        error: standard error of the mean over the queries.
        milliseconds: median time of a search for the longest rankings.
    """

    depth: int
    k: int
    mean: float
    error: float
    milliseconds: float


@dataclass(frozen=True)
class Calibration:
    """Recalls by depth, measured on an index.

    Attributes:
        passages: how many passages the index held.
        queries: how many queries were asked.
        rows: what was measured, depths ascending.
    """

    passages: int
    queries: int
    rows: tuple[Recall, ...]

    def depth(self, k: int, recall: float) -> int | None:
        """Return the candidates to score for rankings of length k; None where everything must be compared.

        A depth counts as reaching a recall when its mean does so by one standard error. Lengths between those that were
        measured take the next longer one's depth, and longer ones proportionally more candidates: everything,
        where those would be all passages.
        """
        lengths = sorted({row.k for row in self.rows})
        if not lengths:
            return None
        measured = next((length for length in lengths if length >= k), lengths[-1])
        for row in self.rows:
            if row.k == measured and min(row.mean, 1.0) - row.error >= recall:
                depth = max(k, row.depth, -(-row.depth * k // measured))
                return depth if depth < self.passages else None
        return None

    def fits(self, passages: int) -> bool:
        """Return whether it still holds for an index of so many passages."""
        return self.passages / GROWTH <= passages <= self.passages * GROWTH

    def to_json(self) -> str:
        """Return the calibration as JSON."""
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def from_json(text: str) -> Calibration | None:
        """Read what `to_json` wrote; None where it cannot be read, since it can be measured again."""
        try:
            about = json.loads(text)
            rows: Sequence[Mapping[str, float]] = about["rows"]
            read = tuple(
                Recall(int(r["depth"]), int(r["k"]), float(r["mean"]), float(r["error"]), float(r["milliseconds"]))
                for r in rows
            )
            return Calibration(int(about["passages"]), int(about["queries"]), read)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
