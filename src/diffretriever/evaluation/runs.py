"""Runs: ranked passages per query, and the TREC format they are exchanged in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from diffretriever.corpus.lines import Line, numbered_lines
from diffretriever.corpus.problems import Problem, shorten
from diffretriever.errors import CorpusError, InputError

#: Half the range of single precision, so that tied scores can be lowered.
_LARGEST_SCORE = 1.7e38


class Ranked(Protocol):
    """Anything with a passage id and a score, such as a hit of an index."""

    @property
    def passage_id(self) -> str:
        """Identifier of the passage."""
        ...

    @property
    def score(self) -> float:
        """Its score; higher is better."""
        ...


class ScoredPassage(NamedTuple):
    """A passage in a ranking."""

    passage_id: str
    score: float


@dataclass(frozen=True)
class Run:
    """What a system answered to each query.

    Attributes:
        tag: name of the system.
        rankings: query id -> passages, best first. Scores fall strictly and are single precision, so that every
            reader of the run (trec_eval sorts by score, and at ties by id, descending) sees this order and no other.
    """

    tag: str
    rankings: Mapping[str, Sequence[ScoredPassage]]

    @staticmethod
    def of(query_ids: Sequence[str], results: Sequence[Sequence[Ranked]], tag: str = "diffretriever") -> Run:
        """Return the run of search results: results[i], best first, answers query_ids[i].

        Raises:
            InputError: the lengths differ, a query comes twice, or a ranking is not sorted by score.
        """
        if len(query_ids) != len(results):
            raise InputError(f"{len(query_ids)} query ids for {len(results)} rankings; give one ranking per query")
        if len(set(query_ids)) != len(query_ids):
            raise InputError("a query id occurs twice; give every query once")
        pairs = zip(query_ids, results, strict=True)
        return Run(tag, {query_id: _falling(query_id, ranking) for query_id, ranking in pairs})

    def without_own_ids(self) -> Run:
        """Return the run without passages that carry the id of their query (ArguAna and Quora ask for this)."""
        kept = {q: [p for p in ranking if p.passage_id != q] for q, ranking in self.rankings.items()}
        return Run(self.tag, kept)


def _falling(query_id: str, ranking: Sequence[Ranked]) -> list[ScoredPassage]:
    """Return the ranking with scores in single precision that fall strictly; a tied score is lowered by one step."""
    falling: list[ScoredPassage] = []
    seen: set[str] = set()
    previous, limit = math.inf, np.float32(np.inf)
    for hit in ranking:
        if hit.score > previous or hit.passage_id in seen:
            raise InputError(
                f"the ranking of query {query_id!r} is not sorted, or holds a passage twice, at {hit.passage_id!r} "
                f"(score {hit.score}); give passages once, best first"
            )
        if not abs(hit.score) <= _LARGEST_SCORE:
            raise InputError(
                f"the ranking of query {query_id!r} gives {hit.passage_id!r} the score {hit.score}; scores must be "
                "finite numbers of single precision"
            )
        seen.add(hit.passage_id)
        previous = hit.score
        score = np.float32(hit.score)
        limit = score if score < limit else np.nextafter(limit, np.float32(-np.inf))
        falling.append(ScoredPassage(hit.passage_id, float(limit)))
    return falling


def write_run(run: Run, path: str | Path) -> None:
    """Write a run in TREC format: query, Q0, passage, rank from 1, score, tag; a file that is there is replaced whole.

    A link stays one, and what it leads to is replaced. A pipe or a device, such as /dev/stdout, is written to.

    Raises:
        InputError: an id or the tag is empty or holds white space, which separates the columns, or the file cannot be
            made.
    """
    path = Path(path)
    check_run_path(path)
    if path.exists() and not path.is_file():  # a file in its place would never reach who reads from it
        _write_lines(run, path)
        return
    target = path.resolve()
    new = target.with_name(f".{target.name}.new")
    try:
        _write_lines(run, new)
        new.replace(target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _write_lines(run: Run, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for query_id, ranking in run.rankings.items():
            for rank, passage in enumerate(ranking, 1):
                ids = (run_column(query_id), run_column(passage.passage_id))
                # Nine significant digits give back the same single-precision number.
                file.write(f"{ids[0]} Q0 {ids[1]} {rank} {passage.score:.9g} {run_column(run.tag)}\n")


def check_run_path(path: Path) -> None:
    """Raise unless a run can be written to a path; asked before the work whose result it is.

    Raises:
        InputError: it is a folder, or its own folder is missing or may not be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the file of the run, such as {path / 'run.trec'}")
    if path.exists() and not path.is_file():  # a pipe or a device: nothing is made in its folder
        return
    folder = path.resolve().parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: there is no folder {folder}; make it, or give another file for the run")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: the folder {folder} may not be written; give another file for the run")


def run_column(value: str) -> str:
    """Return an id or tag as a column of a run.

    Raises:
        InputError: it is empty or holds white space.
    """
    if not value or value.split() != [value]:
        raise InputError(f"{value!r} cannot stand in a TREC run, where white space separates columns; use another id")
    return value


def read_run(path: str | Path) -> Run:
    """Return a TREC run, each ranking in the order that trec_eval sees, whatever its ranks say.

    That is by score in single precision, descending, and at equal scores by passage id, descending.

    Raises:
        CorpusError: the file cannot be read or a line is bad; names file and line.
    """
    rankings: dict[str, list[ScoredPassage]] = {}
    tag = ""
    for line in numbered_lines(path):
        if isinstance(line, Problem):
            raise CorpusError(str(line))
        if line.raw.strip():
            query_id, passage, tag = _run_line(str(path), line)
            rankings.setdefault(query_id, []).append(passage)
    try:
        return Run.of(list(rankings), [_as_trec_eval(r) for r in rankings.values()], tag or "unknown")
    except InputError as error:
        raise CorpusError(f"{path}: {error}") from error


def _as_trec_eval(ranking: Iterable[ScoredPassage]) -> list[ScoredPassage]:
    # Scores beyond single precision become infinite here, and Run.of refuses those.
    with np.errstate(over="ignore"):
        rounded = [ScoredPassage(p.passage_id, float(np.float32(p.score))) for p in ranking]
    return sorted(rounded, key=lambda p: (p.score, p.passage_id.encode()), reverse=True)


def _run_line(name: str, line: Line) -> tuple[str, ScoredPassage, str]:
    try:
        cells = line.text().split()
    except UnicodeDecodeError as error:
        byte = line.raw[error.start]
        raise CorpusError(f"{name}:{line.number}: byte 0x{byte:02x} is no UTF-8; convert the file") from error
    if len(cells) != 6:
        expected = "query Q0 passage rank score tag"
        raise CorpusError(f"{name}:{line.number}: {len(cells)} columns, expected 6 ({expected}): {shorten(line.raw)}")
    try:
        return cells[0], ScoredPassage(cells[2], float(cells[4])), cells[5]
    except ValueError as error:
        raise CorpusError(f"{name}:{line.number}: score {cells[4]!r} is no number") from error
