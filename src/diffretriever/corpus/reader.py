"""Passage reader: a corpus on disk as a stream of passages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diffretriever.corpus.passage import Passage
from diffretriever.corpus.problems import OnError, Problem, shorten
from diffretriever.corpus.records import RecordError, passage_from
from diffretriever.corpus.rows import Format, read_rows
from diffretriever.errors import CorpusError, InputError


@dataclass
class PassageReader:
    """The passages of a corpus, read anew at every iteration and never held together in memory.

    Ids are remembered with their lines, so that a second passage of the same id is a problem that names both.

    Attributes:
        source: a file, a folder, or `-` for standard input (which can be read once).
        file_format: format of the source; None tells it from the name.
        on_error: "raise" stops at the first bad line; "report" collects bad lines in `problems` and goes on.
        problems: bad lines of the latest iteration so far.
    """

    source: str | Path
    file_format: Format | None = None
    on_error: OnError = "raise"
    problems: list[Problem] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "report"):
            raise InputError(f"on_error is {self.on_error!r}; use 'raise' or 'report'")

    def __iter__(self) -> Iterator[Passage]:
        """Yield the passages in the order of the source.

        Raises:
            CorpusError: the source cannot be read at all, or, with on_error="raise", a line is bad.
            MissingExtraError: an optional dependency for this format is not installed.
        """
        self.problems = []
        seen: dict[str, int] = {}
        for ordinal, row in enumerate(read_rows(self.source, self.file_format), 1):
            if isinstance(row, Problem):
                self._refuse(row)
                continue
            try:
                passage = passage_from(row.fields)
            except RecordError as error:
                self._refuse(Problem(row.source, row.line, str(error)))
                continue
            first = seen.setdefault(passage.passage_id, row.line or ordinal)
            if first != (row.line or ordinal):
                what = f"id {shorten(passage.passage_id)} was already given in line {first}; ids must be unique"
                self._refuse(Problem(row.source, row.line, what))
                continue
            yield passage

    def _refuse(self, problem: Problem) -> None:
        if self.on_error == "raise":
            raise CorpusError(str(problem))
        self.problems.append(problem)


def read_passages(
    source: str | Path,
    *,
    file_format: Format | None = None,
    on_error: OnError = "raise",
) -> PassageReader:
    """Return the passages of JSONL, TSV, CSV, Parquet, a BEIR folder or a folder of text files, as a stream.

    Args:
        source: `.jsonl`, `.tsv` or `.csv` (each also `.gz` or `.zst`), `.parquet`, a folder with `corpus.jsonl`, a
            folder of `.txt` and `.md` files (relative path = id), or `-` for JSONL on standard input.
        file_format: the format, when the name does not tell it.
        on_error: "raise" or "report", see `PassageReader`.

    Example:
        >>> for passage in read_passages("corpus.jsonl"):  # doctest: +SKIP
        ...     print(passage.passage_id, passage.title)
    """
    return PassageReader(source, file_format, on_error)
