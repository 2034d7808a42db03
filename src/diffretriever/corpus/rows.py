"""Rows: the records of each input format, each with the place it came from."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from diffretriever.corpus.lines import COMPRESSIONS, LONGEST_LINE, STDIN, Line, numbered_lines, source_name
from diffretriever.corpus.problems import Problem, shorten
from diffretriever.corpus.records import ID_FIELDS, TEXT_FIELDS
from diffretriever.errors import CorpusError, InputError, MissingExtraError

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Scalar

Format = Literal["jsonl", "tsv", "csv", "parquet", "beir", "text"]
Source = str | Path
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
    ".parquet": "parquet",
}
_TEXT_SUFFIXES = (".txt", ".md")
# The csv module refuses longer fields by default at 131,072 characters, which a report or a book chapter reaches.
_LONGEST_CSV_FIELD = LONGEST_LINE


class Row(NamedTuple):
    """One record of an input: its file, its line (or row) from 1, and its fields."""

    source: str
    line: int
    fields: Mapping[str, object]


def read_rows(source: Source, file_format: Format | None = None) -> Iterator[Row | Problem]:
    """Yield the records of an input in order; a `Problem` stands where a record cannot be read.

    Args:
        source: a file, a folder, or `-` for JSONL on standard input.
        file_format: its format; by default told from the name, for a folder from its content.

    Raises:
        CorpusError: the input does not exist, or its format cannot be told.
        MissingExtraError: an optional dependency for this format is not installed.
    """
    readers: dict[Format, Callable[[Source], Iterator[Row | Problem]]] = {
        "jsonl": _jsonl_rows,
        "tsv": _tsv_rows,
        "csv": _csv_rows,
        "parquet": _parquet_rows,
        "beir": _beir_rows,
        "text": _text_rows,
    }
    chosen = file_format or detect_format(source)
    if chosen not in readers:
        raise InputError(f"format {chosen!r} is unknown; use one of {', '.join(readers)}")
    return readers[chosen](source)


def detect_format(source: Source) -> Format:
    """Return the format of an input, told from its name or, for a folder, from what it holds.

    Raises:
        CorpusError: it does not exist or is of no known format.
    """
    if str(source) == STDIN:
        return "jsonl"
    path = Path(source)
    if os.path.isdir(path):  # pathlib's methods raise where a name is too long
        return "beir" if find_jsonl(path, "corpus") else "text"
    if not os.path.exists(path):
        raise CorpusError(f"{path}: no such file or folder; check the path")
    suffix = _plain_suffix(path)
    if suffix in _TEXT_SUFFIXES:
        raise CorpusError(f"{path}: a single text file is no corpus; give the folder that holds it, or JSONL")
    if suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise CorpusError(f"{path}: {suffix or 'no suffix'} tells no format; use one of {known}, or name the format")
    return _SUFFIXES[suffix]


def find_jsonl(folder: Path, stem: str) -> Path | None:
    """Return `folder/stem.jsonl` or its compressed form, or None when the folder has neither."""
    candidates = (folder / f"{stem}.jsonl{ending}" for ending in ("", *COMPRESSIONS))
    return next((path for path in candidates if path.is_file()), None)


def _plain_suffix(path: Path) -> str:
    suffixes = [s for s in path.suffixes if s not in COMPRESSIONS]
    return suffixes[-1].lower() if suffixes else ""


def _jsonl_rows(source: Source) -> Iterator[Row | Problem]:
    name = source_name(source)
    for line in numbered_lines(source):
        if isinstance(line, Problem):
            yield line
        elif line.raw.strip():  # an empty line holds no record and takes no id
            yield _json_row(name, line)


def _json_row(name: str, line: Line) -> Row | Problem:
    advice = "write one JSON object per line"
    try:
        value = json.loads(line.text(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        byte = line.raw[error.start]
        return Problem(name, line.number, f"byte 0x{byte:02x} at {error.start + 1} is no UTF-8; convert the file")
    except json.JSONDecodeError as error:
        return Problem(name, line.number, f"no JSON ({error.msg} at column {error.colno}): {_seen(line)}; {advice}")
    except (ValueError, RecursionError) as error:
        return Problem(name, line.number, f"no usable JSON ({error}): {_seen(line)}; {advice}")
    if not isinstance(value, dict):
        return Problem(name, line.number, f"a JSON {type(value).__name__}, no object: {_seen(line)}; {advice}")
    return Row(name, line.number, value)


def _seen(line: Line) -> str:
    return shorten(line.raw[:200].decode("utf-8", "replace"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _tsv_rows(source: Source) -> Iterator[Row | Problem]:
    """Read tab-separated lines without quoting, as MS MARCO writes them: a quote is a character like any other."""
    name = source_name(source)
    columns: Sequence[str] | None = None
    for line in numbered_lines(source):
        if isinstance(line, Problem):
            yield line
            continue
        if not line.raw:
            continue
        cells = line.raw.decode("utf-8", "surrogateescape").split("\t")
        if columns is None:
            if _is_header(cells):
                columns = _distinct(f"{name}:{line.number}", cells)
                continue
            if len(cells) > 2:
                raise CorpusError(
                    f"{name}:{line.number}: {len(cells)} columns and no header line; put a first line that names them, "
                    "such as id<TAB>title<TAB>text"
                )
            columns = ("id", "text")
        yield _tabular_row(name, line.number, columns, cells)


def _csv_rows(source: Source) -> Iterator[Row | Problem]:
    name = source_name(source)
    damage: list[Problem] = []

    def texts() -> Iterator[str]:
        for line in numbered_lines(source):
            if isinstance(line, Problem):
                damage.append(line)
            else:
                # Bytes that are no UTF-8 pass here as lone surrogates; `records.well_formed` names them.
                yield line.raw.decode("utf-8", "surrogateescape") + "\n"

    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CSV_FIELD))
    reader = csv.reader(texts(), strict=True)
    columns: Sequence[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield Problem(name, start, f"no CSV record ({error}); quote a field that holds a comma, quote or line end")
            continue
        if not cells:
            continue
        if columns is None:
            if not _is_header(cells):
                raise CorpusError(
                    f"{name}:{start}: the first line must name the columns, an id ({', '.join(ID_FIELDS)}) and a text "
                    f"({', '.join(TEXT_FIELDS)}) among them; it is {shorten(cells)}"
                )
            columns = _distinct(f"{name}:{start}", cells)
        else:
            yield _tabular_row(name, start, columns, cells)
    yield from damage


def _is_header(cells: Sequence[str]) -> bool:
    return not {*ID_FIELDS}.isdisjoint(cells) and not {*TEXT_FIELDS}.isdisjoint(cells)


def _distinct(place: str, columns: Sequence[str]) -> Sequence[str]:
    """Return the columns; raise CorpusError where one is named twice, of which only the last would be kept."""
    if twice := [column for i, column in enumerate(columns) if column in columns[:i]]:
        raise CorpusError(f"{place}: names the column {shorten(twice[0])} twice; give every column a name of its own")
    return columns


def _tabular_row(name: str, number: int, columns: Sequence[str], cells: Sequence[str]) -> Row | Problem:
    if len(cells) != len(columns):
        return Problem(name, number, f"{len(cells)} columns where {len(columns)} were expected: {shorten(list(cells))}")
    return Row(name, number, dict(zip(columns, cells, strict=True)))


def _parquet_rows(source: Source) -> Iterator[Row | Problem]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "reading a Parquet file") from error
    name = source_name(source)
    number = 0
    try:
        with pq.ParquetFile(source) as file:
            _distinct(name, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024):
                yield from _batch_rows(name, number, batch)
                number += len(batch)
    except (OSError, pa.ArrowException) as error:
        if not number:
            raise CorpusError(f"{name}: cannot be opened as Parquet ({error}); check the file") from error
        message = f"cannot be read any further after row {number} ({error}); copy or download the file again"
        yield Problem(name, number + 1, message)


def _batch_rows(name: str, before: int, batch: RecordBatch) -> list[Row | Problem]:
    """Return the rows of a batch, whose first has the number `before` + 1."""
    columns = batch.schema.names
    try:
        return [Row(name, n, fields) for n, fields in enumerate(batch.to_pylist(), before + 1)]
    except (ValueError, OverflowError):  # one value that Python cannot hold would cost the whole batch
        rows = (dict(zip(columns, [c[i] for c in batch.columns], strict=True)) for i in range(len(batch)))
        return [_scalar_row(name, n, scalars) for n, scalars in enumerate(rows, before + 1)]


def _scalar_row(name: str, number: int, scalars: Mapping[str, Scalar]) -> Row | Problem:
    fields: dict[str, object] = {}
    for column, scalar in scalars.items():
        try:
            fields[column] = _scalar_value(scalar)
        except (ValueError, OverflowError, NotImplementedError) as error:
            return Problem(name, number, f"{column} holds a {scalar.type} that cannot be read ({error}); convert it")
    return Row(name, number, fields)


def _scalar_value(scalar: Scalar) -> object:
    import pyarrow as pa

    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if not pa.types.is_timestamp(scalar.type) and not pa.types.is_time(scalar.type):
            raise
        # Nanoseconds, which the datetime module lacks, and years it lacks: as the text that ISO 8601 gives them.
        return str(scalar.cast(pa.string()).as_py()).replace(" ", "T")


def _beir_rows(source: Source) -> Iterator[Row | Problem]:
    path = find_jsonl(Path(source), "corpus")
    if path is None:
        raise CorpusError(f"{source}: no corpus.jsonl, corpus.jsonl.gz or corpus.jsonl.zst in this folder")
    return _jsonl_rows(path)


def _text_rows(source: Source) -> Iterator[Row | Problem]:
    """Read every .txt and .md file below a folder, in path order, but no hidden one; the relative path is the id."""
    folder = Path(source)
    paths = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.suffix.lower() in _TEXT_SUFFIXES and path.is_file()
    )
    visible = [(name, path) for name, path in paths if not any(part.startswith(".") for part in name.split("/"))]
    if not visible:
        raise CorpusError(f"{folder}: holds neither corpus.jsonl (BEIR) nor a .txt or .md file; check the folder")
    for name, path in visible:
        try:
            raw = path.read_bytes()
            yield Row(str(path), 0, {"id": name, "text": raw.decode("utf-8-sig")})
        except UnicodeDecodeError as error:
            number = raw[: error.start].count(b"\n") + 1
            message = f"byte 0x{raw[error.start]:02x} is no UTF-8; convert the file to UTF-8"
            yield Problem(str(path), number, message)
        except OSError as error:
            yield Problem(str(path), 0, f"cannot be read ({error.strerror}); check its permissions")
