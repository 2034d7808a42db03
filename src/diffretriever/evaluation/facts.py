"""Facts: what a collection holds, by content, so that a result can say what it was measured on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from diffretriever.corpus import Passage, Query
from diffretriever.evaluation.collections import Collection
from diffretriever.evaluation.qrels import Qrel
from diffretriever.evaluation.results import CollectionStamp, Coverage
from diffretriever.evaluation.runs import Run


@dataclass(frozen=True)
class CorpusFacts:
    """What one reading of a corpus found.

    Attributes:
        passage_ids: ids, in order.
        digest: digest of ids, titles and texts, in order.
        characters: length of titles and texts.
    """

    passage_ids: tuple[str, ...]
    digest: str
    characters: int

    @staticmethod
    def of(passages: Iterable[Passage]) -> CorpusFacts:
        """Return the facts of a corpus, which is read once."""
        ids: list[str] = []
        state, characters = sha256(), 0
        for passage in passages:
            ids.append(passage.passage_id)
            characters += len(passage.title) + len(passage.text)
            state.update(_line(passage.passage_id, passage.title, passage.text))
        return CorpusFacts(tuple(ids), state.hexdigest(), characters)

    def __len__(self) -> int:
        return len(self.passage_ids)

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """[N] the place of each passage when ids are sorted, by which equal scores are ordered."""
        places = np.empty(len(self), dtype=np.int64)
        places[sorted(range(len(self)), key=self.passage_ids.__getitem__)] = np.arange(len(self))
        return places

    @cached_property
    def rows(self) -> dict[str, int]:
        """Passage id -> its place in the corpus."""
        return {passage_id: row for row, passage_id in enumerate(self.passage_ids)}


def queries_digest(queries: Sequence[Query]) -> str:
    """Return the digest of the ids and texts of queries, in order."""
    return _digest(_line(q.query_id, q.text) for q in queries)


def qrels_digest(qrels: Sequence[Qrel]) -> str:
    """Return the digest of judgements, whatever their order."""
    return _digest(_line(q.query_id, q.passage_id, q.relevance) for q in sorted(qrels))


def run_digest(run: Run) -> str:
    """Return the digest of the ids that a run ranks, whatever the order of its queries."""
    return _digest(_line(q, *(p.passage_id for p in run.rankings[q])) for q in sorted(run.rankings))


def collection_stamp(collection: Collection, corpus: CorpusFacts) -> CollectionStamp:
    """Return what identifies a collection."""
    return CollectionStamp(
        name=collection.name,
        split=collection.split,
        source=collection.source,
        qrels=collection.qrels_source,
        passages=len(corpus),
        queries=len(collection.queries),
        judgements=len(collection.qrels),
        corpus_hash=corpus.digest,
        queries_hash=queries_digest(collection.queries),
        qrels_hash=qrels_digest(collection.qrels),
    )


def coverage_of(collection: Collection, corpus: CorpusFacts, first_stage: Run | None = None) -> Coverage:
    """Return the counts of what does not fit together in a collection, and in the run that is re-ranked."""
    judged = {q.query_id for q in collection.qrels}
    relevant = {q.query_id for q in collection.qrels if q.relevance > 0}
    missing = {q.passage_id for q in collection.qrels} - corpus.rows.keys()
    missing_relevant = {q.passage_id for q in collection.qrels if q.relevance > 0} & missing
    listed, answered = set[str](), judged
    if first_stage is not None:
        answered = {q for q, ranking in first_stage.rankings.items() if ranking}
        listed = {p.passage_id for q in judged & answered for p in first_stage.rankings[q]}
    return Coverage(
        unjudged_queries=collection.unjudged_queries,
        queries_without_text=len(judged - {q.query_id for q in collection.queries}),
        queries_without_relevant=len(judged - relevant),
        judged_passages_missing=len(missing),
        relevant_passages_missing=len(missing_relevant),
        listed_passages_missing=len(listed - corpus.rows.keys()),
        queries_without_candidates=len(judged - answered),
    )


def _digest(lines: Iterable[bytes]) -> str:
    state = sha256()
    for line in lines:
        state.update(line)
    return state.hexdigest()


def _line(*values: str | int) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
