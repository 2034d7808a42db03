"""Rows: the training texts of one file, found by number without holding a JSONL file in memory."""

from __future__ import annotations

import hashlib
import json
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from diffretriever.corpus.lines import COMPRESSIONS, open_bytes
from diffretriever.corpus.problems import Problem, shorten
from diffretriever.corpus.rows import detect_format
from diffretriever.errors import CorpusError, MissingExtraError
from diffretriever.progress import progress_bar
from diffretriever.training.settings import RowFormat

if TYPE_CHECKING:
    import pyarrow as pa

#: Bad rows that one message names; the others are counted.
_SHOWN = 10
_BLOCK = 1 << 20


class TrainingRow(NamedTuple):
    """A query, the passages that answer it, and passages that seem to but do not.

    Attributes:
        query: the query; None in a file of texts alone.
        positives: at least one.
        negatives: hard negatives, perhaps none.
    """

    query: str | None
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


class RowFile(Protocol):
    """The rows of one file.

    Attributes:
        sha256: digest of the file as it lies on the disk.
    """

    sha256: str

    def __len__(self) -> int:
        """Return how many rows there are."""

    def __getitem__(self, number: int) -> TrainingRow:
        """Return a row by number, from 0."""


class RowError(Exception):
    """A row that cannot be trained on; the message says why, the caller knows where."""


def open_rows(path: Path, form: RowFormat = "auto", *, progress: bool = False) -> RowFile:
    """Return the rows of a JSONL (also .gz, .zst) or Parquet file, every one of them checked.

    Args:
        path: the file.
        form: layout of its rows; told from the fields by default.
        progress: whether to show a progress bar on a terminal.

    Raises:
        CorpusError: the file does not exist, is of another format, or has rows that cannot be used: the message names
            file and line of the first ones.
        MissingExtraError: pyarrow or zstandard is needed and not installed.
    """
    if not path.is_file():
        raise CorpusError(f"{path} does not exist; set data.folder to the folder of the training files")
    kind = detect_format(path)
    if kind == "jsonl":
        return JsonlRows(path, form, progress=progress)
    if kind == "parquet":
        return ParquetRows(path, form, progress=progress)
    raise CorpusError(f"{path}: training texts are read from JSONL or Parquet, not {kind}; convert the file")


class JsonlRows:
    """Rows of a JSONL file, of which only the places of the lines are kept; a compressed one is unpacked to the disk.

    Args:
        path: the file.
        form: layout of its rows.
        progress: whether to show a progress bar on a terminal.
    """

    def __init__(self, path: Path, form: RowFormat, *, progress: bool = False) -> None:
        self._path, self._form = path, form
        self.sha256 = _digest(path)
        packed = path.suffix in COMPRESSIONS
        self._file: IO[bytes] = tempfile.TemporaryFile() if packed else path.open("rb")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._offsets = array("q")
        _refuse(list(self._scan(packed, progress)), path)
        if not self._offsets:
            raise CorpusError(f"{path}: holds no row; check the file")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> TrainingRow:
        self._file.seek(self._offsets[number])
        return _parsed(self._file.readline(), self._form)

    def _scan(self, packed: bool, progress: bool) -> Iterator[Problem]:
        """Find and check all lines; yields the bad ones."""
        place = 0
        size = None if packed else self._path.stat().st_size
        with (
            open_bytes(self._path) as stream,
            progress_bar(f"reading {self._path.name}", size, enabled=progress) as advance,
        ):
            for number, line in enumerate(_lines(stream, self._path), 1):
                if packed:
                    self._file.write(line)
                if line.strip():
                    try:
                        _parsed(line, self._form)
                    except RowError as error:
                        yield Problem(str(self._path), number, str(error))
                    self._offsets.append(place)
                place += len(line)
                advance(len(line))
        self._file.flush()


def _lines(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    number = 0
    try:
        for number, line in enumerate(stream, 1):  # noqa: B007
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(
            f"{path}: cannot be read any further after line {number} ({error}); copy or download the file again"
        ) from error


class ParquetRows:
    """Rows of a Parquet file, whose columns are held as Arrow lays them out.

    Args:
        path: the file.
        form: layout of its rows.
        progress: whether to show a progress bar on a terminal.
    """

    def __init__(self, path: Path, form: RowFormat, *, progress: bool = False) -> None:
        self._path, self._form = path, form
        self.sha256 = _digest(path)
        self._table = _read_table(path)
        if not len(self._table):
            raise CorpusError(f"{path}: holds no row; check the file")
        _refuse(list(self._check(progress)), path)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> TrainingRow:
        return row_from({name: self._table[name][number].as_py() for name in self._table.column_names}, self._form)

    def _check(self, progress: bool) -> Iterator[Problem]:
        number = 0
        with progress_bar(f"reading {self._path.name}", len(self._table), enabled=progress) as advance:
            for batch in self._table.to_batches(max_chunksize=4096):
                for fields in batch.to_pylist():
                    number += 1
                    try:
                        row_from(fields, self._form)
                    except RowError as error:
                        yield Problem(str(self._path), number, str(error))
                advance(len(batch))


def _read_table(path: Path) -> pa.Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train", "reading training texts") from error
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
        known = [name for name in names if name in _FIELDS]
        return pq.read_table(path, columns=known or names).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{path}: cannot be read as Parquet ({error}); check the file") from error


_POSITIVE, _NEGATIVE = ("positive", "positives"), ("negative", "negatives")
_FIELDS = ("query", *_POSITIVE, *_NEGATIVE, "positive_passages", "negative_passages", "title", "text")


def row_from(fields: Mapping[str, object], form: RowFormat = "auto") -> TrainingRow:
    """Return the row of one record.

    Raises:
        RowError: a field is missing, empty or of another type.
    """
    layout = form if form != "auto" else _layout(fields)
    if layout == "text":
        return TrainingRow(None, (_passage("text", {k: fields.get(k) for k in ("title", "text")}),), ())
    query = _text("query", fields.get("query"))
    if layout == "tevatron":
        names = ("positive_passages", "negative_passages")
    else:
        found = [next((n for n in side if fields.get(n) is not None), side[0]) for side in (_POSITIVE, _NEGATIVE)]
        names = (found[0], found[1])
    positives = _passages(names[0], fields.get(names[0]))
    if not positives:
        raise RowError(f"{names[0]} is {shorten(fields.get(names[0]))}; give at least one passage")
    return TrainingRow(query, positives, _passages(names[1], fields.get(names[1])))


def _layout(fields: Mapping[str, object]) -> RowFormat:
    if "positive_passages" in fields:
        return "tevatron"
    if any(name in fields for name in _POSITIVE):
        return "pairs"
    if "text" in fields and fields.get("query") is None:
        return "text"
    raise RowError(
        f"has the fields {shorten(sorted(fields))}; give query and positive (and negative), query and "
        "positive_passages (and negative_passages), or text"
    )


def _passages(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(_passage(name, item) for item in items)


def _passage(name: str, value: object) -> str:
    if not isinstance(value, Mapping):
        return _text(name, value)
    text, title = _text(name, value.get("text")), value.get("title")
    return f"{_text(f'title in {name}', title)}. {text}" if title else text


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{name} is {shorten(value)}; it must be a text that is not empty")
    return value


def _parsed(line: bytes, form: RowFormat) -> TrainingRow:
    try:
        fields = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise RowError(f"no JSON ({error}): {shorten(line[:200].decode('utf-8', 'replace'))}") from error
    if not isinstance(fields, dict):
        raise RowError(f"a JSON {type(fields).__name__}, no object; write one JSON object per line")
    return row_from(fields, form)


def _refuse(problems: list[Problem], path: Path) -> None:
    if problems:
        more = f"\nand {len(problems) - _SHOWN:,} more rows of {path.name}" if len(problems) > _SHOWN else ""
        raise CorpusError("\n".join(map(str, problems[:_SHOWN])) + more)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
