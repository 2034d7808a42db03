"""LatencyResults: what the latency study measured, as a versioned JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffretriever.errors import CorpusError
from diffretriever.evaluation.records import incomplete, read_record, write_record
from diffretriever.json_files import read_json_object
from diffretriever.machine import Machine
from diffretriever.studies.timing import Timing

LATENCY_FILE = "latency.json"
#: Version of the file's layout.
SCHEMA = 1


@dataclass(frozen=True)
class TimedSystem:
    """One system of the study.

    Attributes:
        key: its name in the points: the system's and its number of vectors.
        system: name of the system, such as "diffretriever" or "promptreps".
        model: name of the checkpoint, or of the shape.
        vectors: vectors per text that it is asked for: K or N.
        variant: "single" (one vector) or "multi".
        weights: "loaded" or "random".
        parameters: number of weights.
        dtype: dtype of the forward pass.
    """

    key: str
    system: str
    model: str
    vectors: int
    variant: str
    weights: str
    parameters: int
    dtype: str


@dataclass(frozen=True)
class EncodingPoint:
    """Encoding texts of one length with one system: tokenising, forward passes, vectors and terms on the CPU.

    Attributes:
        key: which system.
        length: tokens of a text that were asked for.
        text_tokens: tokens of a text, prompt and masked positions not counted; the mean over the texts.
        one: duration of encoding one text.
        batch: texts of a larger call.
        texts_per_second: throughput of such calls, by their median duration.
        vectors: vectors per text that came back, the mean.
    """

    key: str
    length: int
    text_tokens: float
    one: Timing
    batch: int
    texts_per_second: float
    vectors: float


@dataclass(frozen=True)
class SearchPoint:
    """Searching an index of one size exactly for the ten best passages of one query.

    Attributes:
        variant: "single" or "multi".
        query_slots: K_q.
        passage_slots: K_p.
        dim: D.
        passages: number of passages.
        vector_bytes: memory of the vectors.
        one: duration of one query.
        batch: queries of a larger call.
        queries_per_second: throughput of such calls.
    """

    variant: str
    query_slots: int
    passage_slots: int
    dim: int
    passages: int
    vector_bytes: int
    one: Timing
    batch: int
    queries_per_second: float


@dataclass(frozen=True)
class Check:
    """A ratio that the study looks for.

    Attributes:
        name: which ratio.
        length: at which length of the text, in tokens.
        value: the median over the rounds of the paired ratio.
        expected: what the paper reports, in words.
        passed: whether it holds; None where the paper's machine and models differ and it is for comparison only.
    """

    name: str
    length: int
    value: float
    expected: str
    passed: bool | None


@dataclass(frozen=True)
class LatencyResults:
    """Everything that one run of the latency study measured.

    Attributes:
        schema: version of this layout, `SCHEMA`.
        created: UTC time, ISO 8601.
        command: the command line.
        seed: seed of random weights and vectors.
        device: "cpu", "cuda:0" and so on.
        systems: the systems.
        encoding: one point per system and length.
        search: one point per variant and size.
        checks: ratios beside those of the paper.
        skipped: what was left out, and why.
        machine: what it ran on.
        versions: package -> version.
    """

    schema: int
    created: str
    command: str
    seed: int
    device: str
    systems: tuple[TimedSystem, ...]
    encoding: tuple[EncodingPoint, ...]
    search: tuple[SearchPoint, ...]
    checks: tuple[Check, ...]
    skipped: tuple[str, ...]
    machine: Machine
    versions: dict[str, str]

    def system(self, key: str) -> TimedSystem:
        """Return the system of a point."""
        return next(system for system in self.systems if system.key == key)

    def write(self, folder: Path) -> Path:
        """Write `latency.json` into a folder, in one step, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        write_record(self, folder / LATENCY_FILE)
        return folder / LATENCY_FILE

    @staticmethod
    def read(path: Path) -> LatencyResults:
        """Return what `write` wrote.

        Raises:
            CorpusError: the file is damaged or incomplete, or of another version.
        """
        check_schema(path, SCHEMA, "diffretriever latency")
        found = read_record(LatencyResults, path)
        known = {system.key for system in found.systems}
        if unknown := [point.key for point in found.encoding if point.key not in known]:
            raise incomplete(path, f"systems has no {unknown[0]!r}, which encoding names", "diffretriever latency")
        return found


def check_schema(path: Path, supported: int, command: str) -> None:
    """Refuse a result file of another layout.

    Raises:
        CorpusError: it says another version than `supported`.
    """
    schema = read_json_object(path, CorpusError).get("schema")
    if schema != supported:
        raise CorpusError(
            f"{path}: layout {schema!r}, this version reads {supported}; run `{command}` again, or upgrade"
        )
