"""Exhaustive search: queries against every encoded passage, in batches, exactly.

Scores come from `diffretriever.scoring`; the best of each query are kept while the shards stream by, so memory is
bounded by a shard and not by the corpus. Equal scores are ordered by passage id.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from diffretriever.conventions import protocol_named
from diffretriever.corpus import Query
from diffretriever.encoder import Encoder
from diffretriever.errors import InputError
from diffretriever.evaluation.encodings import Encodings
from diffretriever.evaluation.facts import CorpusFacts
from diffretriever.fusion import Ranking
from diffretriever.idf import SAMPLE, Idf, document_frequencies, idf_factors, weigh
from diffretriever.progress import progress_bar
from diffretriever.representations import Provenance, Representations
from diffretriever.scoring import Precision, maxsim, single_dense, sparse_dot

#: Queries scored at once.
_QUERIES = 512


def encoder_modes(encoder: Encoder) -> tuple[str, ...]:
    """Return the modes that an encoder can be searched by; MaxSim of one vector with one is no mode of its own."""
    p = encoder.provenance
    several = p.query_slots > 1 or p.passage_slots > 1
    dense = ("single", "multi") if several else ("single",)
    return (dense if encoder.dim else ()) + (("sparse",) if encoder.vocabulary_size else ())


class EncodedSearcher:
    """A `Searcher` over the encodings of a corpus.

    Args:
        encoder: what encodes the queries.
        encodings: the corpus, complete.
        corpus: its facts.
        candidates: [Q, N] 1 for each passage that may answer a query, of the queries that will be searched, in their
            order; None when all may. Candidates all get a score, also those that share no term with the query.
        idf: whether term weights of queries are fitted to the "collection" (see `idf`) or left as the "model" gives
            them; of no effect where the encoder has no `term_idf`.
        device: where dense scores are computed.
        progress: whether to show progress bars on a terminal.
    """

    def __init__(
        self,
        encoder: Encoder,
        encodings: Encodings,
        corpus: CorpusFacts,
        *,
        candidates: sp.csr_matrix | None = None,
        idf: Idf = "collection",
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> None:
        self.modes = encoder_modes(encoder)
        self.encoding_seconds = 0.0
        self._encoder = encoder
        self._encodings = encodings
        self._corpus = corpus
        self._candidates = None if candidates is None else sp.csc_matrix(candidates)
        self._model_idf = encoder.term_idf if idf == "collection" else None
        self._device = device
        self._progress = progress
        self._encoded: tuple[tuple[str, ...], Representations] | None = None
        self._ids = [corpus.passage_ids[row] for row in np.argsort(corpus.order).tolist()]

    def search(self, queries: Sequence[Query], k: int, mode: str) -> list[Ranking]:
        """Return the k best passages of each query; see `Searcher`."""
        if mode not in self.modes or k < 1:
            raise InputError(f"modes are {', '.join(self.modes)}, and k is at least 1; got {mode!r} and {k}")
        encoded = self._weighed(self.encode(queries)) if mode == "sparse" else self.encode(queries)
        chunks = [slice(start, start + _QUERIES) for start in range(0, len(queries), _QUERIES)]
        parts = [encoded.select(chunk) for chunk in chunks]
        best = [_Best(len(part), k) for part in parts]
        precision = _precision(encoded.provenance)
        with progress_bar(f"searching {mode}", self._encodings.about.passages, enabled=self._progress) as advance:
            for rows, shard in self._encodings.shards():
                for chunk, part, kept in zip(chunks, parts, best, strict=True):
                    scores = self._eligible(self._scores(part, shard, mode, precision), part, shard, mode, chunk, rows)
                    kept.add(scores, torch.from_numpy(self._corpus.order[rows]))
                advance(rows.stop - rows.start)
        floor = 0.0 if mode == "sparse" and self._candidates is None else None
        return [ranking for kept in best for ranking in kept.rankings(self._ids, floor)]

    def encode(self, queries: Sequence[Query]) -> Representations:
        """Return the representations of queries, which are encoded once."""
        texts = tuple(query.text for query in queries)
        if self._encoded is None or self._encoded[0] != texts:
            started = time.perf_counter()
            self._encoded = (texts, self._encoder.encode_queries(texts, progress=self._progress))
            self.encoding_seconds += time.perf_counter() - started
        return self._encoded[1]

    def _weighed(self, queries: Representations) -> Representations:
        """Return queries with the term weights that this collection gives them."""
        if self._model_idf is None:
            return queries
        counts = document_frequencies(self._encodings.sample(SAMPLE), len(self._model_idf))
        return weigh(queries, idf_factors(*counts, self._model_idf))

    def _scores(
        self, queries: Representations, shard: Representations, mode: str, precision: Precision
    ) -> torch.Tensor:
        """Return the [Q, n] scores of a shard."""
        if mode == "multi":
            return maxsim(queries, shard, precision=precision, device=self._device).cpu()
        if mode == "single":
            return single_dense(queries, shard, precision=precision, device=self._device).cpu()
        return torch.from_numpy(sparse_dot(queries, shard, precision=precision).toarray())

    def _eligible(
        self,
        scores: torch.Tensor,
        queries: Representations,
        shard: Representations,
        mode: str,
        chunk: slice,
        rows: slice,
    ) -> torch.Tensor:
        """Return the scores with -inf where a passage may not or does not answer a query."""
        if self._candidates is not None:
            allowed = torch.from_numpy(self._candidates[:, rows].tocsr()[chunk].toarray() > 0)
        elif mode == "sparse":
            allowed = scores > 0
        else:
            # What has no vectors is not found, rather than found with score 0.
            asks, answers = (torch.from_numpy(np.diff(r.offsets) > 0) for r in (queries, shard))
            allowed = asks[:, None] & answers[None, :]
        return scores.masked_fill(~allowed, float("-inf"))


class _Best:
    """The k best passages of each of some queries so far: score descending, then place in the order of ids."""

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._scores = torch.zeros(queries, 0)
        self._places = torch.zeros(queries, 0, dtype=torch.int64)

    def add(self, scores: torch.Tensor, places: torch.Tensor) -> None:
        """Take in [Q, n] scores of passages with n places, which no earlier call had."""
        all_places = torch.cat([self._places, places.expand(len(scores), -1)], dim=1)
        all_scores = torch.cat([self._scores, scores], dim=1)
        # Sorted by place first: the stable sort by score then keeps that order among equals.
        all_places, by_place = torch.sort(all_places, dim=1)
        all_scores, by_score = torch.sort(all_scores.gather(1, by_place), dim=1, descending=True, stable=True)
        self._scores = all_scores[:, : self._k].contiguous()
        self._places = all_places.gather(1, by_score[:, : self._k])

    def rankings(self, ids: Sequence[str], floor: float | None) -> list[Ranking]:
        """Return one ranking per query; `ids` are all passage ids, sorted."""
        found = (self._scores > float("-inf")).sum(dim=1).tolist()
        rows = zip(self._scores.double().numpy(), self._places.tolist(), found, strict=True)
        return [Ranking([ids[p] for p in places[:n]], scores[:n].copy(), floor=floor) for scores, places, n in rows]


def candidate_matrix(lists: Sequence[Sequence[str]], corpus: CorpusFacts) -> sp.csr_matrix:
    """Return [Q, N] 1 where list q holds passage n; ids that the corpus lacks are left out."""
    rows = [[corpus.rows[i] for i in passage_ids if i in corpus.rows] for passage_ids in lists]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    columns: npt.NDArray[np.int64] = np.array([c for r in rows for c in r], dtype=np.int64)
    return sp.csr_matrix((np.ones(len(columns), np.int8), columns, offsets), shape=(len(rows), len(corpus)))


def _precision(provenance: Provenance) -> Precision:
    return "bfloat16" if protocol_named(provenance.protocol).bf16_scores else "float32"
