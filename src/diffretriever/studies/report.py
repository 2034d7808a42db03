"""The report: result files of any study, collected and laid out as one document."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from diffretriever.errors import CorpusError, InputError
from diffretriever.evaluation.results import RESULTS_FILE, Results
from diffretriever.machine import Machine
from diffretriever.studies.document import Block, Document, Listing, Paragraph, Section
from diffretriever.studies.effectiveness import Board, Row, board
from diffretriever.studies.effectiveness_section import (
    differences_section,
    effectiveness_section,
    tradeoff_section,
)
from diffretriever.studies.latency_results import LATENCY_FILE, LatencyResults
from diffretriever.studies.latency_section import latency_section
from diffretriever.studies.significance import marks_against
from diffretriever.studies.sweep_results import SWEEP_FILE, SweepResults
from diffretriever.studies.sweep_section import sweep_section

V = TypeVar("V")

#: Characters that no XML file may hold, an SVG included, or that no UTF-8 file can: controls and lone surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Inputs:
    """Everything that was found in the given files and folders.

    Attributes:
        results: results of evaluations, those that a sweep is made of left out.
        latency: runs of the latency study.
        sweeps: sweeps.
    """

    results: tuple[Results, ...]
    latency: tuple[LatencyResults, ...]
    sweeps: tuple[SweepResults, ...]

    @staticmethod
    def read(paths: Sequence[Path]) -> Inputs:
        """Return what files, and folders with all that lies below, hold.

        Raises:
            CorpusError: a path does not exist, holds no result, or a file is damaged.
        """
        found: dict[Path, None] = {}
        for path in paths:
            files = [path] if path.is_file() else sorted(_files_below(path))
            if not files:
                names = f"{RESULTS_FILE}, {SWEEP_FILE} or {LATENCY_FILE}"
                raise CorpusError(f"{path}: there is no {names}; give folders that evaluate, sweep or latency wrote")
            found |= dict.fromkeys(file.resolve() for file in files)
        kinds: dict[str, list[Path]] = {RESULTS_FILE: [], SWEEP_FILE: [], LATENCY_FILE: []}
        for file in found:
            if file.name not in kinds:
                raise CorpusError(f"{file}: is none of {', '.join(kinds)}")
            kinds[file.name].append(file)
        return Inputs(
            tuple(Results.read(path) for path in kinds[RESULTS_FILE]),
            tuple(LatencyResults.read(path) for path in kinds[LATENCY_FILE]),
            tuple(SweepResults.read(path) for path in kinds[SWEEP_FILE]),
        )


def _files_below(folder: Path) -> list[Path]:
    """Return the result files below a folder; of a sweep only its own, not the pairs that it is made of."""
    if (folder / SWEEP_FILE).is_file():
        return [folder / SWEEP_FILE]
    own = [folder / name for name in (RESULTS_FILE, LATENCY_FILE) if (folder / name).is_file()]
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return own + [file for path in below for file in _files_below(path)]


@dataclass(frozen=True)
class Choices:
    """What the reader chose.

    Attributes:
        title: heading of the page.
        measure: the measure; None for the first that all results have.
        baseline: name of the row that others are compared with; None for the first.
        focus: name of the row whose queries are shown one by one; None for the one with the best mean.
        passages: size of the index of the trade-off.
    """

    title: str = "Retrieval results"
    measure: str | None = None
    baseline: str | None = None
    focus: str | None = None
    passages: int = 10_000


def compose(inputs: Inputs, choices: Choices) -> Document:
    """Return the document of some result files.

    Raises:
        InputError: a row or measure that was asked for does not exist, or results do not fit together.
    """
    inputs, choices = _printable(inputs), _printable(choices)
    table = board(inputs.results, choices.measure) if inputs.results else None
    sections: list[Section] = []
    if table is not None:
        baseline = table.row(choices.baseline) if choices.baseline else table.rows[0]
        sections.append(_effectiveness(table, baseline))
    sections.append(tradeoff_section(table, inputs.latency, choices.passages))
    if table is not None and len(table.rows) > 1:
        focus = table.row(choices.focus) if choices.focus else _focus(table, baseline)
        if focus.name == baseline.name:
            raise InputError(f"{focus.name!r} cannot be compared with itself; choose another --focus or --baseline")
        if (differences := differences_section(table, focus, baseline)) is not None:
            sections.append(differences)
    sections += [latency_section(run, n) for n, run in enumerate(inputs.latency, 1)]
    sections += [sweep_section(sweep, n) for n, sweep in enumerate(inputs.sweeps, 1)]
    sections.append(_origin(inputs))
    made = datetime.now(timezone.utc).date().isoformat()
    counts = f"evaluations {len(inputs.results)}, latency runs {len(inputs.latency)}, sweeps {len(inputs.sweeps)}"
    return Document(choices.title, f"Made by diffretriever report on {made}. Read: {counts}.", tuple(sections))


def _printable(value: V) -> V:
    """Return records, lists or texts without characters that cannot be shown."""
    made: Any = value
    if isinstance(value, str):
        made = _UNPRINTABLE.sub("", value)
    elif isinstance(value, dict):
        made = {_printable(key): _printable(content) for key, content in value.items()}
    elif isinstance(value, tuple):
        made = tuple(map(_printable, value))
    elif is_dataclass(value):
        made = replace(value, **{f.name: _printable(getattr(value, f.name)) for f in fields(value)})  # type: ignore[type-var]
    return made  # type: ignore[no-any-return]


def _effectiveness(table: Board, baseline: Row) -> Section:
    marks, note = marks_against(table, baseline)
    return effectiveness_section(table, marks, note)


def _focus(table: Board, baseline: Row) -> Row:
    """Return the row with the best mean over the tasks it has, but for the baseline."""

    def mean(row: Row) -> tuple[int, float]:
        values = [v for task in table.tasks if (v := row.value(task, table.measure)) is not None]
        return len(values), sum(values) / len(values)

    return max((row for row in table.rows if row is not baseline), key=mean)


def _origin(inputs: Inputs) -> Section:
    """Return what made the numbers: commands, seeds, machines, versions."""
    runs: list[Results | LatencyResults | SweepResults] = [*inputs.results, *inputs.latency, *inputs.sweeps]
    commands = dict.fromkeys(_command(run.command) for run in runs)
    machines = dict.fromkeys(_machine(run.machine) for run in runs)
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in run.versions.items()) for run in runs)
    systems = dict.fromkeys(_system(results) for results in inputs.results)
    blocks: list[Block] = [
        Paragraph("Commands that made the numbers, in the order of the files; of full paths the last part:"),
        Listing(tuple(commands)),
        Paragraph(
            f"Seeds: {', '.join(sorted({str(run.seed) for run in runs}))}. Machines: {'; '.join(machines)}"
            f"{_load([run.machine for run in runs])}."
        ),
        Paragraph(f"Versions: {'; '.join(versions)}."),
    ]
    if systems:
        blocks += [Paragraph("Systems:"), Listing(tuple(systems))]
    return Section("How the numbers were made", tuple(blocks))


def _command(command: str) -> str:
    """Return a command with what others can repeat of it: where things lay on one machine is left out."""
    try:
        words = shlex.split(command)
    except ValueError:  # as it was given, if it is no command line
        return command
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in words)


def _load(machines: Sequence[Machine]) -> str:
    """Return how busy the machines were, in words; "" where no system told."""
    loads = [machine.load for machine in machines if machine.load is not None]
    if not loads:
        return ""
    return f"; load average {min(loads):.1f}" + (f" to {max(loads):.1f}" if max(loads) > min(loads) else "")


def _machine(machine: Machine) -> str:
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    parts = [machine.processor, f"{threads} of {machine.cores}", f"{machine.memory_bytes / 2**30:.0f} GiB"]
    return ", ".join([*parts, *([machine.accelerator] if machine.accelerator else []), machine.platform])


def _system(results: Results) -> str:
    stamp, p = results.system, results.system.provenance
    if p is None:
        return f"{stamp.label}: " + ", ".join(f"{k}={v}" for k, v in stamp.settings.items())
    slots = f"K=({p.query_slots}, {p.passage_slots})"
    lengths = f"lengths {p.max_query_length}/{p.max_passage_length}"
    what = f"{p.system}, {p.fingerprint}, prompt {p.prompt} {p.prompt_hash}, protocol {p.protocol}, readout {p.readout}"
    return f"{stamp.label}: {what}, {slots}, S={p.steps}, {lengths}, {p.dtype}, stops {p.stops}"
