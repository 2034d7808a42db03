"""BM25: the lexical baseline, computed by bm25s."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffretriever.corpus import Passage, Query
from diffretriever.errors import InputError, MissingExtraError
from diffretriever.fusion import Ranking
from diffretriever.searcher import Setting

if TYPE_CHECKING:
    from types import ModuleType

_MODE = "lexical"


@dataclass(frozen=True)
class BM25:
    """BM25 (Robertson et al. 1995, in Lucene's form) over Snowball English stems, English stop words left out.

    Example:
        >>> from diffretriever import Passage
        >>> from diffretriever.corpus import Query
        >>> from diffretriever.systems.bm25 import BM25
        >>> searcher = BM25().index([Passage("p1", "Bread rises."), Passage("p2", "The tilt causes seasons.")])
        >>> searcher.search([Query("q1", "what causes the seasons?")], 10, "lexical")[0].passage_ids
        ['p2']

    Attributes:
        k1: how slowly repetitions of a term stop counting; .9 is the default of Anserini, 1.5 that of bm25s.
        b: how much the length of a passage counts, 0 to 1; .4 with k1 = .9, .75 with k1 = 1.5.
    """

    k1: float = 0.9
    b: float = 0.4

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise InputError(f"k1 must be at least 0 and b from 0 to 1, got k1={self.k1} and b={self.b}")

    @property
    def name(self) -> str:
        """Its name in tables and runs."""
        return "bm25"

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Everything that decides its scores."""
        from importlib.metadata import version

        _libraries()
        return {
            "k1": self.k1,
            "b": self.b,
            "method": "lucene",
            "stemmer": "snowball english",
            "stop_words": "bm25s english",
            "bm25s": version("bm25s"),
            "pystemmer": version("pystemmer"),
        }

    def index(self, passages: Sequence[Passage], *, progress: bool = False) -> BM25Searcher:
        """Return a searcher over these passages; a title is written before its text as "title. text".

        Args:
            passages: the corpus.
            progress: whether to show progress bars on a terminal.

        Raises:
            InputError: there is no passage, or none with a word.
            MissingExtraError: bm25s or PyStemmer is not installed.
        """
        bm25s, _ = _libraries()
        shown = progress and sys.stderr.isatty()  # bm25s would draw its bars into a log file as well
        texts = [f"{p.title}. {p.text}" if p.title else p.text for p in passages]
        tokens = _words(texts, progress=shown)
        if not any(tokens):
            raise InputError(f"none of the {len(texts):,} passages holds a word that BM25 can count")
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
        index.index(tokens, show_progress=shown)
        return BM25Searcher(index, [p.passage_id for p in passages])


class BM25Searcher:
    """A corpus indexed by BM25.

    Args:
        index: the index of bm25s.
        passage_ids: its passages, in order.
    """

    modes: tuple[str, ...] = (_MODE,)

    def __init__(self, index: Any, passage_ids: list[str]) -> None:  # noqa: ANN401  (bm25s has no types)
        self._index = index
        self._passage_ids = passage_ids
        self._places = {passage_id: place for place, passage_id in enumerate(passage_ids)}

    def search(self, queries: Sequence[Query], k: int, mode: str = _MODE) -> list[Ranking]:
        """Return the k best passages of each query: those that share a term with it, all others score 0.

        Args:
            queries: the queries.
            k: length of a ranking at most.
            mode: "lexical".

        Raises:
            InputError: k is not positive, or the mode is another.
        """
        if mode != _MODE or k < 1:
            raise InputError(f"BM25 ranks by mode {_MODE!r} and k of at least 1, got {mode!r} and {k}")
        return [self._ranking(words, k) for words in _words([q.text for q in queries], progress=False)]

    def scores(self, query: Query, passage_ids: Sequence[str]) -> list[float]:
        """Return the score of each of these passages for a query.

        Raises:
            InputError: a passage is not in the corpus.
        """
        if missing := [i for i in passage_ids if i not in self._places]:
            raise InputError(f"the corpus holds no passage {missing[0]!r}")
        scores = self._scores(_words([query.text], progress=False)[0])
        return [0.0 if scores is None else float(scores[self._places[i]]) for i in passage_ids]

    def _scores(self, words: list[str]) -> npt.NDArray[np.float32] | None:
        """Return the score of every passage, or None where none has a word of the query."""
        known = [w for w in words if w in self._index.vocab_dict]
        if not known:
            return None
        scores: npt.NDArray[np.float32] = self._index.get_scores(known)
        return scores

    def _ranking(self, words: list[str], k: int) -> Ranking:
        scores = self._scores(words)
        if scores is None:
            return Ranking([], np.zeros(0), floor=0.0)
        places = np.flatnonzero(scores > 0)
        if len(places) > k:
            # All passages tied with the k-th stay, so that ids decide between them.
            least = np.partition(scores[places], len(places) - k)[len(places) - k]
            places = places[scores[places] >= least]
        return Ranking.sort([self._passage_ids[i] for i in places], scores[places], k=k, floor=0.0)


def _words(texts: list[str], *, progress: bool) -> list[list[str]]:
    """Return the stemmed words of each text, stop words and single characters left out."""
    bm25s, stemmer = _libraries()
    words: list[list[str]] = bm25s.tokenize(
        texts, stopwords="en", stemmer=stemmer.Stemmer("english"), return_ids=False, show_progress=progress
    )
    return words


def _libraries() -> tuple[ModuleType, ModuleType]:
    """Return bm25s and PyStemmer."""
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise MissingExtraError(("bm25s", "PyStemmer"), "eval", "the system bm25") from error
    return bm25s, Stemmer
