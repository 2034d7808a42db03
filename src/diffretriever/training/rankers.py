"""Rankers: what mining takes candidates from: an index, or BM25 over a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from diffretriever.corpus import Passage, Query
from diffretriever.errors import InputError
from diffretriever.fusion import DEPTH, Ranking, fuse
from diffretriever.index import Hit, Index
from diffretriever.index.searching import Mode
from diffretriever.representations import Representations
from diffretriever.scoring import maxsim, single_dense, sparse_dot
from diffretriever.systems.bm25 import BM25


class RowPassage(NamedTuple):
    """A passage of a training row; its id is empty where the row gives none."""

    passage_id: str
    title: str
    text: str


class MinedRow(NamedTuple):
    """A training row before mining."""

    query_id: str
    query: str
    positives: tuple[RowPassage, ...]


class Candidate(NamedTuple):
    """A ranked passage."""

    passage_id: str
    title: str
    text: str
    score: float


class Ranked(NamedTuple):
    """What a source found for one row.

    Attributes:
        candidates: passages, best first; positives may be among them.
        positive_score: score of the best positive, comparable to those of the candidates; None where it is unknown.
    """

    candidates: list[Candidate]
    positive_score: float | None


class Ranker(Protocol):
    """A source of candidates."""

    def about(self) -> Mapping[str, object]:
        """Return everything that decides its rankings, for the file beside the rows."""
        ...

    def rank(self, rows: Sequence[MinedRow], depth: int) -> list[Ranked]:
        """Return the `depth` best passages of each row's query."""
        ...


class IndexRanker:
    """Candidates from an index.

    A positive that no ranking holds is scored by itself: with its representations in the index, else with those that
    the encoder makes of it. In hybrid mode it is put where it belongs in both rankings before they are fused.

    Args:
        index: the index, open, with an encoder.
        mode: "multi", "single", "sparse" or "hybrid".
        alpha: weight of the dense side in hybrid mode.
    """

    def __init__(self, index: Index, mode: Mode = "multi", *, alpha: float = 0.5) -> None:
        if index.encoder is None:
            raise InputError("mining needs an index that was opened with its encoder; pass it to Index.open")
        self._index = index
        self._encoder = index.encoder
        self._mode: Mode = mode
        self._alpha = alpha

    def about(self) -> Mapping[str, object]:
        """Return mode, size and maker of the index."""
        provenance = self._index.manifest.provenance
        return {
            "source": "index",
            "mode": self._mode,
            "alpha": self._alpha if self._mode == "hybrid" else None,
            "passages": len(self._index),
            "model": provenance.model,
            "fingerprint": provenance.fingerprint,
        }

    def rank(self, rows: Sequence[MinedRow], depth: int) -> list[Ranked]:
        """Return the `depth` best passages of each row's query."""
        queries = self._encoder.encode_queries([row.query for row in rows])
        hits = self._index.search_batch(queries, depth, self._mode, alpha=self._alpha)
        return [
            Ranked(
                [Candidate(hit.passage_id, hit.title, hit.text, hit.score) for hit in found],
                self._positive_score(row, queries.select([i]), found),
            )
            for i, (row, found) in enumerate(zip(rows, hits, strict=True))
        ]

    def _positive_score(self, row: MinedRow, query: Representations, hits: Sequence[Hit]) -> float:
        ids = {p.passage_id for p in row.positives}
        found = [hit.score for hit in hits if hit.passage_id in ids]
        if found:  # ranked by score, so no positive outside the ranking scores more
            return found[0]
        passages = Representations.concatenate([self._represented(p) for p in row.positives])
        compared = self._index.comparable(query)
        dense = (single_dense if self._mode == "single" else maxsim)(compared, passages).numpy()[0]
        if self._mode in ("multi", "single"):
            return float(dense.max())
        sparse = sparse_dot(compared, passages).toarray()[0]
        if self._mode == "sparse":
            return float(sparse.max())
        rankings = self._index.rankings(query)[0]
        return max(self._fused(rankings, d, s) for d, s in zip(dense.tolist(), sparse.tolist(), strict=True))

    def _represented(self, passage: RowPassage) -> Representations:
        if passage.passage_id and passage.passage_id in self._index:
            return self._index.get(passage.passage_id).representations
        given = Passage(passage.passage_id or "positive", passage.text, passage.title)
        return self._encoder.encode_passages([given])

    def _fused(self, rankings: tuple[Ranking, Ranking], dense: float, sparse: float) -> float:
        """Return the fused score of a passage that has these two scores."""
        name = "\0positive"  # no id of an index begins so
        with_dense, with_sparse = (
            _joined_by(name, score, ranking) for ranking, score in zip(rankings, (dense, sparse), strict=True)
        )
        fused = fuse(with_dense, with_sparse, alpha=self._alpha)
        places = dict(zip(fused.passage_ids, fused.scores.tolist(), strict=True))
        return float(places.get(name, 0.0))


def _joined_by(passage_id: str, score: float, ranking: Ranking) -> Ranking:
    """Return a ranking with one passage more; one at the floor or beneath is not listed."""
    if ranking.floor is not None and score <= ranking.floor:
        return ranking
    ids, scores = [*ranking.passage_ids, passage_id], [*ranking.scores.tolist(), score]
    return Ranking.sort(ids, scores, k=DEPTH, exact=ranking.exact, floor=ranking.floor)


class BM25Ranker:
    """Candidates by BM25 over a corpus held in memory.

    A positive is found in the corpus by its id, or else by its title and text, or its text; one that is not there has
    no score.

    Args:
        passages: the corpus.
        system: parameters of BM25.
        progress: whether to show a progress bar while indexing.
    """

    def __init__(self, passages: Sequence[Passage], system: BM25 | None = None, *, progress: bool = False) -> None:
        self._system = system or BM25()
        self._passages = {p.passage_id: p for p in passages}
        self._ids = {(p.title, p.text): p.passage_id for p in passages}
        self._untitled = {p.text: p.passage_id for p in passages}
        self._searcher = self._system.index(list(passages), progress=progress)

    def about(self) -> Mapping[str, object]:
        """Return the parameters of BM25 and the size of the corpus."""
        return {"source": "bm25", "passages": len(self._passages), **self._system.settings}

    def rank(self, rows: Sequence[MinedRow], depth: int) -> list[Ranked]:
        """Return the `depth` best passages of each row's query, those that share no word with it left out."""
        queries = [Query(row.query_id, row.query) for row in rows]
        rankings = self._searcher.search(queries, depth)
        return [
            Ranked(
                [self._candidate(i, s) for i, s in zip(ranking.passage_ids, ranking.scores.tolist(), strict=True)],
                self._positive_score(row, query),
            )
            for row, query, ranking in zip(rows, queries, rankings, strict=True)
        ]

    def _positive_score(self, row: MinedRow, query: Query) -> float | None:
        known = [i for i in map(self._known_id, row.positives) if i is not None]
        return max(self._searcher.scores(query, known)) if known else None

    def _known_id(self, passage: RowPassage) -> str | None:
        if passage.passage_id in self._passages:
            return passage.passage_id
        return self._ids.get((passage.title, passage.text)) or self._untitled.get(passage.text)

    def _candidate(self, passage_id: str, score: float) -> Candidate:
        passage = self._passages[passage_id]
        return Candidate(passage_id, passage.title, passage.text, score)
