"""Results: what one system did on one collection, as a versioned JSON file beside its runs.

A result folder holds `results.json` (a `Results`) and one TREC run per mode, named in `ModeResult.run`. Readers find
every result below a folder by `find_results`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from diffretriever.errors import CorpusError
from diffretriever.evaluation.records import incomplete, read_record, write_record
from diffretriever.json_files import read_json_object
from diffretriever.machine import Machine
from diffretriever.representations import Provenance
from diffretriever.searcher import Setting

RESULTS_FILE = "results.json"
#: Version of the file's layout; a change that old readers would misunderstand raises it.
SCHEMA = 1


@dataclass(frozen=True)
class SystemStamp:
    """Which system it was.

    Attributes:
        label: its short name in tables, plots and folders.
        name: what it was opened by: an alias, folder or hub id.
        kind: "encoder" or "lexical".
        provenance: how an encoder makes its numbers (model, fingerprint, prompt hash, K, protocol, readout, dtype,
            lengths, steps); None of a lexical system.
        settings: whatever else decides the scores; of a lexical system everything.
        dim: width of the dense vectors; 0 without any.
    """

    label: str
    name: str
    kind: str
    provenance: Provenance | None
    settings: dict[str, Setting] = field(default_factory=dict)
    dim: int = 0


@dataclass(frozen=True)
class CollectionStamp:
    """Which collection it was, by content.

    Attributes:
        name: name of the collection.
        split: split of its judgements.
        source: folder, file or id it was read from.
        qrels: file or id of the judgements.
        passages: number of passages of the corpus.
        queries: number of queries asked: those with a judgement.
        judgements: number of judgements.
        corpus_hash: digest of ids, titles and texts, in order.
        queries_hash: digest of the ids and texts of the queries asked.
        qrels_hash: digest of the judgements.
    """

    name: str
    split: str
    source: str
    qrels: str
    passages: int
    queries: int
    judgements: int
    corpus_hash: str
    queries_hash: str
    qrels_hash: str


@dataclass(frozen=True)
class FirstStage:
    """The run that was re-ranked.

    Attributes:
        run: its file.
        tag: its tag.
        run_hash: digest of its rankings, as far as they were used.
        depth: passages re-ranked per query.
        passages: number of different passages listed.
    """

    run: str
    tag: str
    run_hash: str
    depth: int
    passages: int


@dataclass(frozen=True)
class Task:
    """What was asked of the system.

    Attributes:
        depth: length of a ranking at most.
        own_ids: "kept" or "dropped": whether a passage with the id of its query may be found (BEIR drops it on
            ArguAna and Quora).
        measures: names of the measures, in order.
        first_stage: the run that was re-ranked; None where the whole corpus was searched.
    """

    depth: int
    own_ids: str
    measures: tuple[str, ...]
    first_stage: FirstStage | None = None


@dataclass(frozen=True)
class Coverage:
    """What did not fit together, counted; a number other than 0 deserves a look.

    Attributes:
        unjudged_queries: queries of the collection without a judgement in this split; they were not asked.
        queries_without_text: judged queries that the collection has no text of; they count 0.
        queries_without_relevant: judged queries none of whose judgements is positive; they count 0.
        judged_passages_missing: passages with a judgement that the corpus does not hold.
        relevant_passages_missing: of these, passages that are relevant to a query; no system can find them.
        listed_passages_missing: passages of the first stage that the corpus does not hold; they were left out.
        queries_without_candidates: judged queries that the first stage does not answer; they count 0.
    """

    unjudged_queries: int
    queries_without_text: int
    queries_without_relevant: int
    judged_passages_missing: int
    relevant_passages_missing: int
    listed_passages_missing: int = 0
    queries_without_candidates: int = 0


@dataclass(frozen=True)
class FusionStamp:
    """How a hybrid ranking was made of two.

    Attributes:
        dense: mode of the dense side.
        sparse: mode of the sparse side.
        method: "minmax" or "rrf".
        alpha: weight of the dense side under "minmax".
        depth: how much of each ranking took part; a passage missing from one gets 0 from it, as its worst does.
    """

    dense: str
    sparse: str
    method: str
    alpha: float
    depth: int


@dataclass(frozen=True)
class ModeResult:
    """One ranking per query by one mode, judged.

    Attributes:
        mode: "single", "multi", "sparse", "hybrid", "hybrid-single" or "lexical".
        run: name of the run's file, in the folder of the results.
        unanswered: judged queries with an empty ranking; they count 0.
        search_seconds: time of searching all queries exactly, reading the encodings included.
        measures: measure -> mean over the judged queries.
        per_query: measure -> query id -> value, of every judged query.
        fusion: how it was fused; None of a mode that is no fusion.
    """

    mode: str
    run: str
    unanswered: int
    search_seconds: float
    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    fusion: FusionStamp | None = None


@dataclass(frozen=True)
class Times:
    """What the preparation took.

    Attributes:
        encode_passages_seconds: time spent on encoding (of a lexical system: indexing) in this call.
        encoded_passages: passages encoded in this call.
        reused_passages: passages whose encodings were there already.
        encode_queries_seconds: time spent on encoding the queries.
        encodings_bytes: size of the encodings on disk.
    """

    encode_passages_seconds: float
    encoded_passages: int
    reused_passages: int
    encode_queries_seconds: float
    encodings_bytes: int


class Question(NamedTuple):
    """What a result answers; two results whose questions are the same have equal rankings.

    Attributes:
        system: which system.
        collection: which collection.
        task: what was asked.
        modes: each mode, and how it was fused.
        seed: seed of every random choice.
    """

    system: SystemStamp
    collection: CollectionStamp
    task: Task
    modes: tuple[tuple[str, FusionStamp | None], ...]
    seed: int

    def is_that_of(self, other: Question) -> bool:
        """Return whether two questions have the same answer."""
        return self.by_content() == other.by_content()

    def by_content(self) -> Question:
        """Return the question without the places of files: digests tell what they hold."""
        first = self.task.first_stage
        return self._replace(
            collection=replace(self.collection, source="", qrels=""),
            task=self.task if first is None else replace(self.task, first_stage=replace(first, run="")),
        )


@dataclass(frozen=True)
class Results:
    """Everything about one system on one collection.

    Attributes:
        schema: version of this layout, `SCHEMA`.
        created: UTC time, ISO 8601.
        command: the command line.
        seed: seed of every random choice.
        system: which system.
        collection: which collection.
        task: what was asked.
        coverage: what did not fit together.
        modes: one entry per mode, in the order asked for.
        times: what the preparation took.
        machine: what it ran on.
        versions: package -> version.
    """

    schema: int
    created: str
    command: str
    seed: int
    system: SystemStamp
    collection: CollectionStamp
    task: Task
    coverage: Coverage
    modes: tuple[ModeResult, ...]
    times: Times
    machine: Machine
    versions: dict[str, str]

    @property
    def question(self) -> Question:
        """What these results answer."""
        modes = tuple((result.mode, result.fusion) for result in self.modes)
        return Question(self.system, self.collection, self.task, modes, self.seed)

    def mode(self, name: str) -> ModeResult:
        """Return the result of one mode.

        Raises:
            CorpusError: the system was not judged in that mode.
        """
        for result in self.modes:
            if result.mode == name:
                return result
        there = ", ".join(r.mode for r in self.modes)
        raise CorpusError(f"no mode {name!r} in the results of {self.system.label}; there are {there}")

    def write(self, folder: Path) -> None:
        """Write `results.json` into a folder, in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        write_record(self, folder / RESULTS_FILE)

    @staticmethod
    def read(folder: str | Path) -> Results:
        """Return the results of a folder, or of a `results.json`.

        Raises:
            CorpusError: the file is missing, damaged, incomplete, or of a newer version.
        """
        path = Path(folder)
        path = path if path.suffix == ".json" else path / RESULTS_FILE
        if not path.is_file():
            raise CorpusError(f"{path}: no such file; give a folder that `diffretriever evaluate` wrote")
        schema = read_json_object(path, CorpusError).get("schema")
        if schema != SCHEMA:
            raise CorpusError(f"{path}: layout {schema!r}, this version reads {SCHEMA}; evaluate again, or upgrade")
        found = read_record(Results, path)
        for number, mode in enumerate(found.modes):
            if lacking := [measure for measure in mode.measures if not mode.per_query.get(measure)]:
                what = f"modes[{number}].per_query has no values of {lacking[0]!r}, of which measures has the mean"
                raise incomplete(path, what, "diffretriever evaluate")
        return found


def find_results(root: str | Path) -> list[tuple[Path, Results]]:
    """Return the folder and the content of every result below a folder, sorted by path.

    Raises:
        CorpusError: a file is damaged, or there is none.
    """
    found = [(path.parent, Results.read(path)) for path in sorted(Path(root).rglob(RESULTS_FILE))]
    if not found:
        raise CorpusError(f"{root}: no {RESULTS_FILE} below this folder; give one that `diffretriever evaluate` filled")
    return found
