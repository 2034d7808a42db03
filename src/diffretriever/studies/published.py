"""Published: the paper's own numbers, to be shown beside measured ones and always named as published."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from diffretriever.evaluation.records import read_record


@dataclass(frozen=True)
class PublishedPoint:
    """One system of the paper's figure of effectiveness against latency.

    Attributes:
        system: system and backbone.
        variant: "single", "multi" or "lexical".
        training: "zero-shot" or "fine-tuned".
        effectiveness: the measure, mean over the collections.
        latency_ms: time of one query in milliseconds; None where the paper gives none.
    """

    system: str
    variant: str
    training: str
    effectiveness: float
    latency_ms: float | None


@dataclass(frozen=True)
class PublishedRatio:
    """A ratio of two encoding latencies, as the range that the paper reports."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class PublishedSearch:
    """The latency of searching so many passages with (K_q, K_p) vectors, in milliseconds."""

    query_slots: int
    passage_slots: int
    passages: int
    latency_ms: float


@dataclass(frozen=True)
class Published:
    """The numbers of one publication.

    Attributes:
        source: the publication.
        measure: measure of the points.
        collections: over which collections.
        latency: what the latency of the points covers, and on which machine.
        note: how the numbers were obtained.
        points: the systems.
        ratios: encoding latencies of autoregressive systems against their own single-vector variant.
        search: search latencies.
    """

    source: str
    measure: str
    collections: str
    latency: str
    note: str
    points: tuple[PublishedPoint, ...]
    ratios: tuple[PublishedRatio, ...]
    search: tuple[PublishedSearch, ...]

    def ratio(self, name: str) -> PublishedRatio:
        """Return the ratio of that name."""
        return next(ratio for ratio in self.ratios if ratio.name == name)


@cache
def published() -> Published:
    """Return the numbers of the paper that this package implements (arXiv 2605.07210)."""
    return read_record(Published, Path(str(files("diffretriever") / "data" / "published" / "paper.json")))
