"""Plan: what is asked of a system on a collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from diffretriever.errors import InputError
from diffretriever.evaluation.measures import parse_measures
from diffretriever.evaluation.runs import Run
from diffretriever.fusion import FusionName
from diffretriever.idf import Idf

#: Modes that fuse two others, and the dense modes that they take, the first that there is.
HYBRIDS: Mapping[str, tuple[str, ...]] = {"hybrid": ("multi", "single"), "hybrid-single": ("single",)}
OwnIds = Literal["auto", "kept", "dropped"]


@dataclass(frozen=True)
class Rerank:
    """The first stage that is re-ranked.

    Attributes:
        run: its rankings.
        source: its file.
        depth: passages re-ranked per query.
    """

    run: Run
    source: str
    depth: int = 100


@dataclass(frozen=True)
class Plan:
    """What is asked of every system and collection.

    Attributes:
        modes: names of the rankings wanted; None is everything that the system offers.
        depth: length of a ranking at most.
        measures: names as ir_measures writes them; None is the collection's usual ones.
        own_ids: whether a passage with the id of its query may be found; "auto" drops it where BEIR does.
        fusion: how hybrid modes are fused.
        alpha: weight of the dense side.
        idf: whether term weights of queries are fitted to the collection, where the model allows it; see `idf`. What is
            re-ranked is no sample of a collection and has the model's.
        rerank: the run to re-rank; None to search the whole corpus.
        seed: seed of torch, stamped.
    """

    modes: tuple[str, ...] | None = None
    depth: int = 1000
    measures: tuple[str, ...] | None = None
    own_ids: OwnIds = "auto"
    fusion: FusionName = "minmax"
    alpha: float = 0.5
    idf: Idf = "collection"
    rerank: Rerank | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.depth < 1 or (self.rerank is not None and self.rerank.depth < 1):
            raise InputError("depth must be at least 1")
        if self.measures is not None:
            parse_measures(self.measures)
