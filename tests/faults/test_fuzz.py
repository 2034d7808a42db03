"""Input readers given anything at all: a named error or a reported line for whatever is not read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diffretriever.corpus import Passage, Problem, read_passages, read_queries
from diffretriever.errors import CorpusError
from diffretriever.evaluation import read_qrels, read_run

T = TypeVar("T")
#: FUZZ_EXAMPLES=5000 runs longer, and with other files each time.
EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
FUZZ = settings(
    max_examples=int(EXAMPLES or 60),
    suppress_health_check=list(HealthCheck),
    derandomize=settings.default.derandomize and not EXAMPLES,
)

texts = st.text(max_size=12)
records = st.lists(
    st.fixed_dictionaries(
        {"_id": texts.filter(bool) | st.integers(), "text": texts},
        optional={
            "title": texts,
            "n": st.floats() | st.integers(),
            "metadata": st.dictionaries(texts, texts, max_size=2),
        },
    ),
    min_size=1,
    max_size=5,
)
tables = st.lists(st.tuples(texts.filter(bool), texts, texts), min_size=1, max_size=5)


def as_jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_csv(rows: list[tuple[str, ...]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("id", "title", "text"), *rows])
    return file.getvalue().encode()


def as_tsv(rows: list[tuple[str, ...]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in [("id", "title", "text"), *rows]).encode()


def as_parquet(rows: list[tuple[str, ...]]) -> bytes:
    file = io.BytesIO()
    columns = dict(zip(("id", "title", "text"), ([*c] for c in zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def as_qrels(rows: list[tuple[str, ...]]) -> bytes:
    return "".join(f"{a}\t{b}\t1\n" for a, b, _ in rows).encode()


def as_run(rows: list[tuple[str, ...]]) -> bytes:
    return "".join(f"q Q0 {a} {i} {-i}.5 tag\n" for i, (a, _, _) in enumerate(rows)).encode()


WRITERS: dict[str, tuple[st.SearchStrategy, Callable[..., bytes]]] = {
    "jsonl": (records, as_jsonl),
    "csv": (tables, as_csv),
    "tsv": (tables, as_tsv),
    "parquet": (tables, as_parquet),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


@st.composite
def mutated(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of a valid file with some replaced, removed or put in."""
    raw = bytearray(draw(contents))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        end = draw(st.integers(at, min(len(raw), at + 8)))
        odd = st.sampled_from([b"\x00", b"\xff", b"\r", b"\n", b'"', b"\t", b",", b"{", b"\xef\xbb\xbf", b"9" * 400])
        raw[at:end] = draw(odd | st.binary(max_size=6))
    return bytes(raw[: draw(st.integers(0, len(raw)))]) if draw(st.booleans()) else bytes(raw)


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def result_or_none(path: Path, read: Callable[[], T]) -> T | None:
    """Return what is read, or None where the one allowed error, which names the file, says why not."""
    error = None
    try:
        return read()
    except CorpusError as refused:
        error = refused
    assert path.name in str(error)
    return None


def reported(path: Path, file_format: str | None = None) -> tuple[list[Passage], list[Problem]] | None:
    """Return passages and problems; None where the file as a whole is refused."""
    reader = read_passages(path, file_format=file_format, on_error="report")  # type: ignore[arg-type]
    passages = result_or_none(path, lambda: list(reader))
    if passages is None:
        return None
    assert all(p.message and p.source and p.line >= 0 for p in reader.problems)
    assert len({p.passage_id for p in passages}) == len(passages)
    for passage in passages:
        json.dumps([passage.passage_id, passage.text, passage.title, passage.metadata], allow_nan=False).encode()
        "".join([passage.passage_id, passage.text, passage.title]).encode()
    return passages, reader.problems


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_any_bytes_are_read_or_refused(folder, kind, packing):
    if kind == "parquet" and packing:
        pytest.skip("Parquet compresses inside")
    strategy, write = WRITERS[kind]
    contents = st.binary(max_size=60) | mutated(strategy.map(write))
    damaged = contents.map(PACKERS[packing]) | mutated(strategy.map(write).map(PACKERS[packing]))

    @FUZZ
    @given(content=damaged)
    def check(content: bytes) -> None:
        reported(written(folder, f"c.{kind}{packing}", content))

    check()


@FUZZ
@given(content=st.binary(max_size=80) | mutated(records.map(as_jsonl)))
def test_every_line_of_jsonl_is_a_passage_or_a_problem(folder, content):
    found = reported(written(folder, "c.jsonl", content))
    assert found is not None
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert len(found[0]) + len(found[1]) == sum(bool(line.strip()) for line in lines)


@FUZZ
@given(content=mutated(tables.map(as_tsv)).map(lambda raw: b"id\ttitle\ttext\n" + raw))
def test_every_line_of_tsv_is_a_passage_or_a_problem(folder, content):
    found = reported(written(folder, "c.tsv", content))
    assert found is not None
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")[1:]]
    assert len(found[0]) + len(found[1]) == sum(bool(line) for line in lines)


@FUZZ
@given(content=mutated(tables.map(as_csv)).map(lambda raw: b"id,title,text\n" + raw))
def test_every_record_of_csv_is_a_passage_or_a_problem(folder, content):
    found = reported(written(folder, "c.csv", content))
    assert found is not None
    # A record may span lines and a bad one may end anywhere, so lines bound the number of records from above.
    lines = [line for line in content.split(b"\n")[1:] if line.removesuffix(b"\r")]
    assert bool(lines) <= len(found[0]) + len(found[1]) <= len(lines)


@FUZZ
@given(rows=tables)
@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_every_valid_row_is_a_passage_or_a_problem(folder, kind, rows):
    if kind == "tsv":
        rows = [tuple(cell.replace("\t", " ").replace("\n", " ").replace("\r", " ") for cell in row) for row in rows]
    if kind == "csv":  # a bare carriage return inside quotes is kept, at the end of a line it is not
        rows = [tuple(cell.replace("\r", " ") for cell in row) for row in rows]
    found = reported(written(folder, f"c.{kind}", WRITERS[kind][1](rows)))
    assert found is not None
    assert len(found[0]) + len(found[1]) == len(rows)
    firsts = {row[0]: row for row in reversed(rows)}
    assert [(p.passage_id, p.title, p.text) for p in found[0]] == [firsts[i] for i in dict.fromkeys(r[0] for r in rows)]


FIELDS = ["_id", "id", "text", "title", "metadata", "m"]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@FUZZ
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["_id", "id", "text", "title", "metadata", "m"]), values), max_size=5)
)
def test_any_json_value_in_any_field_is_kept_or_reported(folder, rows):
    found = reported(written(folder, "c.jsonl", as_jsonl(rows)))
    assert found is not None
    assert len(found[0]) + len(found[1]) == len(rows)


ARROW = {
    "binary": pa.array([b"\xff\xfe", b"ok", None], pa.binary()),
    "not UTF-8": pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\x00\0\0\0\x02\0\0\0\x04\0\0\0\x05\0\0\0"), pa.py_buffer(b"\xff\xfeokx")
    ),
    "far future": pa.array([2**55, 0, None], pa.timestamp("ms")),
    "nanoseconds": pa.array([1, 0, None], pa.timestamp("ns")),
    "duration": pa.array([2**60, 0, None], pa.duration("s")),
    "date": pa.array([2**30, 0, None], pa.date32()),
    "decimal": pa.array([None, 0, 1], pa.decimal128(38, 10)),
    "struct": pa.array([{"a": [1.5, None]}, None, {"a": []}]),
    "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "half": pa.array([1.5, float("nan"), None], pa.float32()),
    "null": pa.nulls(3),
    "categories": pa.array(["a", "b", "a"]).dictionary_encode(),
    "unsigned": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "large lists": pa.array([[b"\xff"], [], None], pa.large_list(pa.binary())),
    "time": pa.array([1, 0, None], pa.time64("ns")),
}


@pytest.mark.parametrize("field", ["m", "text", "id"])
@pytest.mark.parametrize("column", ARROW.values(), ids=ARROW.keys())
def test_any_type_of_a_parquet_column_is_kept_or_reported(tmp_path, column, field):
    columns = {"id": pa.array(["a", "b", "c"]), "text": pa.array(["x", "y", "z"])} | {field: column}
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table(columns), path)
    found = reported(path)
    assert found is not None
    assert len(found[0]) + len(found[1]) == 3


def test_nanoseconds_become_text(tmp_path):
    table = pa.table({"id": ["a"], "text": ["x"], "when": pa.array([1], pa.timestamp("ns"))})
    pq.write_table(table, tmp_path / "c.parquet")
    assert next(iter(read_passages(tmp_path / "c.parquet"))).metadata == {"when": "1970-01-01T00:00:00.000000001"}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", ["jsonl", "tsv", "csv"])
def test_a_line_that_would_fill_the_memory_is_passed_over(tmp_path, monkeypatch, kind, packing):
    monkeypatch.setattr("diffretriever.corpus.lines.LONGEST_LINE", 1000)
    bomb = b"\0" * 3_000_000
    content = {
        "jsonl": b'{"id": 1, "text": "x"}\n' + bomb + b'\n{"id": 2, "text": "y"}\n' + bomb,
        "tsv": b"1\tx\n" + bomb + b"\n2\ty\n" + bomb,
        "csv": b"id,text\n1,x\n" + bomb + b"\n2,y\n" + bomb,
    }[kind]
    found = reported(written(tmp_path, f"c.{kind}{packing}", PACKERS[packing](content)))
    assert found is not None
    assert [p.passage_id for p in found[0]] == ["1", "2"]
    assert len(found[1]) == 2
    assert all("longer than 1,000 bytes" in p.message for p in found[1])


def test_names_that_no_file_can_have_are_refused():
    for read in (read_queries, read_qrels, read_run, lambda name: list(read_passages(name, file_format="jsonl"))):
        for name in ("a\0b", "x" * 5000, "\ud800"):
            with pytest.raises(CorpusError):
                read(name)


def test_a_suffix_in_capitals_is_the_same_format(tmp_path):
    assert read_queries(written(tmp_path, "Q.JSONL", b'{"_id": "1", "text": "x"}')) == [("1", "x")]


def test_a_column_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "c.csv").write_text("id,text,text\n1,first,second\n")
    (tmp_path / "c.tsv").write_text("id\ttext\ttext\n1\tfirst\tsecond\n")
    twice = pa.table([pa.array(["1"]), pa.array(["first"]), pa.array(["second"])], names=["id", "text", "text"])
    pq.write_table(twice, tmp_path / "c.parquet")
    for kind in ("csv", "tsv", "parquet"):
        with pytest.raises(CorpusError, match=rf"c\.{kind}.*'text' twice"):
            list(read_passages(tmp_path / f"c.{kind}"))


@FUZZ
@given(content=st.binary(max_size=80) | mutated(records.map(as_jsonl)) | mutated(tables.map(as_tsv)))
@pytest.mark.parametrize("name", ["q.jsonl", "q.tsv", "q.txt", "q.jsonl.gz"])
def test_queries_are_read_or_refused(folder, name, content):
    path = written(folder, name, content)
    if (queries := result_or_none(path, lambda: read_queries(path))) is None:
        return
    assert len({q.query_id for q in queries}) == len(queries)
    assert len(queries) == sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


@FUZZ
@given(content=st.binary(max_size=80) | mutated(tables.map(as_qrels)))
@example(b"q\t\t1\n")
@example(b"\td\t1\n")
def test_qrels_are_read_or_refused(folder, content):
    path = written(folder, "q.tsv", content)
    if (qrels := result_or_none(path, lambda: read_qrels(path))) is None:
        return
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert len(lines) - 1 <= len(qrels) <= len(lines)
    assert all(q.query_id and q.passage_id for q in qrels)


@FUZZ
@given(content=st.binary(max_size=80) | mutated(tables.map(as_run)))
@example(b"q Q0 a 1 1e300 t\nq Q0 b 2 1e299 t\n")
@example(b"q Q0 a 1 -1e300 t\nq Q0 b 2 -1e301 t\n")
@example(b"q Q0 a\xff 1 2 t\n")
def test_runs_are_read_or_refused(folder, content):
    path = written(folder, "r.trec", content)
    if (run := result_or_none(path, lambda: read_run(path))) is None:
        return
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert sum(map(len, run.rankings.values())) == len(lines)
    for ranking in run.rankings.values():
        assert all(abs(p.score) < float("inf") for p in ranking)


def test_a_run_that_is_no_utf8_or_beyond_single_precision_is_refused(tmp_path):
    for content, message in (
        (b"q Q0 a\xff 1 2 t\n", "byte 0xff is no UTF-8"),
        (b"q Q0 a 1 1e39 t\n", "single precision"),
    ):
        with pytest.raises(CorpusError, match=message):
            read_run(written(tmp_path, "r.trec", content))


@FUZZ
@given(content=st.binary(max_size=80) | mutated(records.map(as_jsonl)), name=st.sampled_from(["corpus.jsonl", "a.txt"]))
def test_folders_are_read_or_refused(folder, content, name):
    inner = folder / "inner"
    inner.mkdir()
    try:
        written(inner, name, content)
        reader = read_passages(inner, on_error="report")
        passages = list(reader)
        records = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        assert len(passages) + len(reader.problems) == (1 if name == "a.txt" else len(records))
    finally:
        shutil.rmtree(inner)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_stream_cut_anywhere_is_reported(tmp_path, packing):
    rows = [{"id": i, "text": str(i) * 9} for i in range(30)]
    packed = PACKERS[packing](as_jsonl(rows))
    for cut in range(1, len(packed)):
        found = reported(written(tmp_path, f"c.jsonl{packing}", packed[:cut]))
        assert found is not None
        assert found[1], f"cut after {cut} of {len(packed)} bytes, {len(found[0])} passages, and nothing said"
