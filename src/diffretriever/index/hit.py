"""Hit: one passage of a search result."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffretriever.corpus import MetadataValue
from diffretriever.representations import SlotWord


@dataclass(frozen=True)
class Hit:
    """A passage found for a query.

    Attributes:
        passage_id: its id.
        score: the score it is ranked by; fused in hybrid mode, the raw score of the mode otherwise.
        rank: 1 for the best.
        text: its text.
        title: its title.
        metadata: its metadata.
        slot_words: predicted words of each passage slot, best first; empty when none were stored.
        dense: its dense score (MaxSim, or the pooled product in mode "single"); None where the dense ranking played
            no part or did not hold the passage.
        sparse: its sparse score, likewise.
        exact: False when an approximate search chose the candidates; the scores are exact either way.
    """

    passage_id: str
    score: float
    rank: int
    text: str
    title: str = ""
    metadata: dict[str, MetadataValue] = field(default_factory=dict)
    slot_words: tuple[tuple[SlotWord, ...], ...] = ()
    dense: float | None = None
    sparse: float | None = None
    exact: bool = True
