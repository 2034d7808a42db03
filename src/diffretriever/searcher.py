"""Searcher and LexicalSystem: what the evaluation needs of a system that ranks passages.

A system takes part in an evaluation in one of two ways:

* it is an `Encoder`: its representations of the corpus are cached and searched exhaustively, whatever the system;
* it is a `LexicalSystem`, such as BM25: it indexes the text of the corpus in its own way and gives a `Searcher`.

Either way the evaluation sees a `Searcher`: some modes, and one ranking per query and mode. Fusion of two modes,
removal of a query's own passage, cutting and writing runs happen above it, once for every system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from diffretriever.corpus import Passage, Query
from diffretriever.fusion import Ranking

#: A value that JSON holds as it is, for the settings of a system.
Setting = str | int | float | bool | None


class Searcher(Protocol):
    """A system with a corpus in it, ready to answer."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the rankings it can make: of "single", "multi" and "sparse", or "lexical"."""
        ...

    def search(self, queries: Sequence[Query], k: int, mode: str) -> list[Ranking]:
        """Return the k best passages of each query, ranking i for query i, score descending, then id ascending.

        A ranking holds what the system found and may be shorter than k or empty: a sparse or lexical one holds only
        passages that share a term with the query, and gives `floor=0.0`, the score of all others.

        Args:
            queries: queries; the ids matter to nothing but messages.
            k: length of a ranking at most.
            mode: one of `modes`.
        """
        ...


@runtime_checkable
class LexicalSystem(Protocol):
    """A system that ranks passages by their words and has no representations to cache."""

    @property
    def name(self) -> str:
        """Its name in tables and runs, such as "bm25"."""
        ...

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Everything that decides its scores, such as k1, b, the stemmer and the version of the library."""
        ...

    def index(self, passages: Sequence[Passage], *, progress: bool = False) -> Searcher:
        """Return a searcher over these passages."""
        ...
