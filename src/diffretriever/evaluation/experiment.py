"""Experiment: one system on one collection, from the corpus to a results file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from diffretriever.corpus import Passage
from diffretriever.encoder import Encoder
from diffretriever.errors import InputError
from diffretriever.evaluation.collections import Collection
from diffretriever.evaluation.encodings import Encodings, Filling
from diffretriever.evaluation.exhaustive import EncodedSearcher, candidate_matrix, encoder_modes
from diffretriever.evaluation.facts import CorpusFacts, collection_stamp, coverage_of, run_digest
from diffretriever.evaluation.habits import default_measures, drops_own_ids
from diffretriever.evaluation.measures import evaluate
from diffretriever.evaluation.plan import HYBRIDS, Plan
from diffretriever.evaluation.results import (
    SCHEMA,
    FirstStage,
    FusionStamp,
    ModeResult,
    Question,
    Results,
    SystemStamp,
    Task,
    Times,
)
from diffretriever.evaluation.runs import Run, ScoredPassage, run_column, write_run
from diffretriever.fusion import DEPTH, Ranking, fuse
from diffretriever.idf import Idf
from diffretriever.machine import Machine, versions
from diffretriever.searcher import LexicalSystem, Searcher, Setting


@dataclass
class Experiment:
    """One system on one collection.

    Attributes:
        label: short name of the system.
        name: what the system was opened by.
        system: the system.
        collection: the collection.
        plan: what is asked.
        encodings_root: folder of the encodings of all experiments.
        settings: what else decides the scores, for the stamp.
        device: where dense scores are computed.
        progress: whether to show progress bars on a terminal.
    """

    label: str
    name: str
    system: Encoder | LexicalSystem
    collection: Collection
    plan: Plan
    encodings_root: Path
    settings: Mapping[str, Setting] = field(default_factory=dict)
    device: str | torch.device = "cpu"
    progress: bool = False

    def __post_init__(self) -> None:
        if self.plan.rerank is not None and not isinstance(self.system, Encoder):
            raise InputError(f"{self.label} cannot re-rank: its scores depend on the whole corpus; give an encoder")
        if not self.modes:
            wanted = ", ".join(self.plan.modes or ())
            raise InputError(f"{self.label} offers {', '.join(self.offered)}, and of these none is among {wanted}")

    @cached_property
    def corpus(self) -> CorpusFacts:
        """Facts of the whole corpus."""
        return CorpusFacts.of(self.collection.passages)

    @cached_property
    def pool(self) -> CorpusFacts:
        """Facts of the passages that take part: all, or those that the first stage lists."""
        return self.corpus if self.plan.rerank is None else CorpusFacts.of(self.passages())

    @cached_property
    def encodings(self) -> Encodings | None:
        """The encodings of the passages that take part; None of a lexical system."""
        if not isinstance(self.system, Encoder):
            return None
        return Encodings.open(self.encodings_root, self.system, self.pool)

    @property
    def offered(self) -> tuple[str, ...]:
        """The modes of the system, hybrid ones included."""
        if not isinstance(self.system, Encoder):
            return ("lexical",)
        base = encoder_modes(self.system)
        return base + (("hybrid", "hybrid-single") if "sparse" in base and len(base) > 1 else ())

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that are judged: of those asked for, the ones that the system offers."""
        if self.plan.modes is None or not isinstance(self.system, Encoder):
            return tuple(mode for mode in self.offered if mode != "hybrid-single")
        return tuple(mode for mode in self.plan.modes if mode in self.offered)

    @property
    def idf(self) -> Idf:
        """Whose idf the term weights of queries have, where the system knows its own."""
        return "model" if self.plan.rerank is not None else self.plan.idf

    @property
    def task_name(self) -> str:
        """Name of collection, split and first stage, for folders."""
        rerank = self.plan.rerank
        suffix = "" if rerank is None else f".rerank-{rerank.depth}"
        return f"{self.collection.name}.{self.collection.split}{suffix}"

    def passages(self) -> Iterable[Passage]:
        """Yield the passages that take part, in the order of the corpus."""
        if self.plan.rerank is None:
            return self.collection.passages
        listed = {passage_id for ids in self._candidates for passage_id in ids}
        return (passage for passage in self.collection.passages if passage.passage_id in listed)

    @cached_property
    def question(self) -> Question:
        """Everything that decides the rankings and measures."""
        return Question(
            self._stamp(),
            collection_stamp(self.collection, self.corpus),
            Task(self._depth, self._own_ids, self._measures, self._first_stage()),
            tuple((mode, self._fusion(mode)) for mode in self.modes),
            self.plan.seed,
        )

    def run(self, folder: Path, *, command: str = "") -> Results:
        """Encode what is missing, search, judge, and write runs and results into a folder.

        Raises:
            CorpusError: encodings are damaged.
            InputError: no passage takes part, or an id cannot stand in a run.
        """
        if not len(self.pool):
            raise InputError(f"{self.task_name}: no passage takes part; the run lists none that the corpus holds")
        for name in (query.query_id for query in self.collection.queries):
            run_column(name)
        for name in self.pool.passage_ids:
            run_column(name)
        torch.manual_seed(self.plan.seed)
        folder.mkdir(parents=True, exist_ok=True)
        searcher, filling = self._prepare()
        rankings, seconds = self._search(searcher)
        modes = tuple(self._judge(mode, rankings, seconds, folder) for mode in self.modes)
        rerank = self.plan.rerank
        encodings = self.encodings
        results = Results(
            schema=SCHEMA,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=command,
            seed=self.plan.seed,
            system=self.question.system,
            collection=self.question.collection,
            task=self.question.task,
            coverage=coverage_of(self.collection, self.corpus, None if rerank is None else rerank.run),
            modes=modes,
            times=Times(
                encode_passages_seconds=filling.seconds,
                encoded_passages=filling.encoded,
                reused_passages=filling.reused,
                encode_queries_seconds=getattr(searcher, "encoding_seconds", 0.0),
                encodings_bytes=0 if encodings is None else encodings.bytes(),
            ),
            machine=Machine.here(),
            versions=versions(),
        )
        results.write(folder)
        for mode in {*self.offered, *HYBRIDS} - set(self.modes):  # rankings of an earlier question
            (folder / f"{mode}.trec").unlink(missing_ok=True)
        return results

    def _prepare(self) -> tuple[Searcher, Filling]:
        """Return the system with the corpus in it, and what that took."""
        system = self.system
        if not isinstance(system, Encoder):
            started = time.perf_counter()
            lexical = system.index(list(self.passages()))
            return lexical, Filling(len(self.pool), 0, time.perf_counter() - started)
        encodings = self.encodings or Encodings.open(self.encodings_root, system, self.pool)
        filling = encodings.fill(system, self.passages(), progress=self.progress)
        candidates = None if self.plan.rerank is None else candidate_matrix(self._candidates, self.pool)
        searcher = EncodedSearcher(
            system,
            encodings,
            self.pool,
            candidates=candidates,
            idf=self.idf,
            device=self.device,
            progress=self.progress,
        )
        return searcher, filling

    def _search(self, searcher: Searcher) -> tuple[dict[str, list[Ranking]], dict[str, float]]:
        """Return the rankings of every mode that is needed, long enough to be fused, and the time of each."""
        needed = [mode for mode in self.modes if mode not in HYBRIDS]
        for mode in self.modes:
            needed += [self._dense_side(mode), "sparse"] if mode in HYBRIDS else []
        fused = any(mode in HYBRIDS for mode in self.modes)
        depth = max(self._depth, DEPTH) if fused else self._depth
        rankings: dict[str, list[Ranking]] = {}
        seconds: dict[str, float] = {}
        queries = self.collection.queries
        if isinstance(searcher, EncodedSearcher):
            searcher.encode(queries)
        for mode in dict.fromkeys(needed):
            started = time.perf_counter()
            # One more than needed where the query's own passage is dropped.
            found = searcher.search(queries, depth + (self._own_ids == "dropped"), mode)
            seconds[mode] = time.perf_counter() - started
            rankings[mode] = [self._fair(q.query_id, r, depth) for q, r in zip(queries, found, strict=True)]
        return rankings, seconds

    def _fair(self, query_id: str, ranking: Ranking, depth: int) -> Ranking:
        """Return a ranking without the query's own passage, where that is dropped, cut to a depth."""
        keep = list(range(len(ranking)))
        if self._own_ids == "dropped":
            keep = [i for i in keep if ranking.passage_ids[i] != query_id]
        keep = keep[:depth]
        return Ranking([ranking.passage_ids[i] for i in keep], ranking.scores[keep], ranking.exact, ranking.floor)

    def _judge(
        self, mode: str, rankings: Mapping[str, Sequence[Ranking]], seconds: Mapping[str, float], folder: Path
    ) -> ModeResult:
        stamp = self._fusion(mode)
        if stamp is not None:
            dense = stamp.dense
            started = time.perf_counter()
            lists = [
                fuse(d, s, method=self.plan.fusion, alpha=self.plan.alpha)
                for d, s in zip(rankings[dense], rankings["sparse"], strict=True)
            ]
            spent = seconds[dense] + seconds["sparse"] + time.perf_counter() - started
        else:
            lists, spent = list(rankings[mode]), seconds[mode]
        run = Run.of(
            [query.query_id for query in self.collection.queries],
            [_scored(ranking, self._depth) for ranking in lists],
            f"{self.label}-{mode}",
        )
        write_run(run, folder / f"{mode}.trec")
        judged = evaluate(run, self.collection.qrels, self._measures)
        return ModeResult(
            mode=mode,
            run=f"{mode}.trec",
            unanswered=judged.queries - sum(bool(r) for r in run.rankings.values()),
            search_seconds=spent,
            measures={value.measure: value.value for value in judged.values},
            per_query=judged.per_query,
            fusion=stamp,
        )

    def _fusion(self, mode: str) -> FusionStamp | None:
        if mode not in HYBRIDS:
            return None
        return FusionStamp(self._dense_side(mode), "sparse", self.plan.fusion, self.plan.alpha, DEPTH)

    def _dense_side(self, mode: str) -> str:
        return next(side for side in HYBRIDS[mode] if side in self.offered)

    def _stamp(self) -> SystemStamp:
        if isinstance(self.system, Encoder):
            provenance = self.system.provenance
            idf = {} if self.system.term_idf is None or self.idf == "model" else {"idf": self.idf}
            settings = {**self.settings, **idf}
            return SystemStamp(self.label, self.name, "encoder", provenance, settings, self.system.dim)
        return SystemStamp(self.label, self.name, "lexical", None, {**self.system.settings, **self.settings})

    def _first_stage(self) -> FirstStage | None:
        rerank = self.plan.rerank
        if rerank is None:
            return None
        used = Run(rerank.run.tag, {q: r[: rerank.depth] for q, r in rerank.run.rankings.items()})
        return FirstStage(rerank.source, rerank.run.tag, run_digest(used), rerank.depth, len(self.pool))

    @cached_property
    def _candidates(self) -> list[list[str]]:
        """The passages that may answer each query."""
        rerank = self.plan.rerank
        if rerank is None:
            return []
        lists = [rerank.run.rankings.get(query.query_id, ())[: rerank.depth] for query in self.collection.queries]
        return [[passage.passage_id for passage in ranking] for ranking in lists]

    @property
    def _depth(self) -> int:
        return self.plan.depth if self.plan.rerank is None else min(self.plan.depth, self.plan.rerank.depth)

    @property
    def _measures(self) -> tuple[str, ...]:
        return self.plan.measures or default_measures(self.collection.name, self._depth)

    @property
    def _own_ids(self) -> Literal["kept", "dropped"]:
        if self.plan.own_ids == "auto":
            return "dropped" if drops_own_ids(self.collection.name) else "kept"
        return self.plan.own_ids


def _scored(ranking: Ranking, depth: int) -> list[ScoredPassage]:
    pairs = zip(ranking.passage_ids[:depth], ranking.scores[:depth].tolist(), strict=True)
    return [ScoredPassage(passage_id, score) for passage_id, score in pairs]
