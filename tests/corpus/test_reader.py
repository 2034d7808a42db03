from __future__ import annotations

import gzip
import io
import json
import string
import sys
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from diffretriever.corpus import Passage, PassageReader, read_passages
from diffretriever.errors import CorpusError, InputError, MissingExtraError

TWO = [Passage("a", "Alpha text", "Title", {"year": 2001}), Passage("b", "")]
JSONL = b'{"_id": "a", "title": "Title", "text": "Alpha text", "year": 2001}\n{"_id": "b", "text": ""}\n'


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, **options):
    return list(read_passages(path, **options))


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "pack"),
        [
            ("c.jsonl", bytes),
            ("c.jsonl.gz", gzip.compress),
            ("c.jsonl.zst", zstandard.ZstdCompressor().compress),
            ("corpus.jsonl", lambda raw: b"\xef\xbb\xbf" + raw),
            ("c.jsonl", lambda raw: raw.replace(b"\n", b"\r\n")),
        ],
    )
    def test_jsonl_plain_and_compressed(self, tmp_path, name, pack):
        assert read(write(tmp_path / name, pack(JSONL))) == TWO

    @pytest.mark.parametrize(
        ("name", "pack"),
        [("corpus.jsonl", bytes), ("corpus.jsonl.gz", gzip.compress), ("corpus.jsonl.zst", zstandard.compress)],
    )
    def test_beir_folder(self, tmp_path, name, pack):
        write(tmp_path / name, pack(JSONL))
        assert read(tmp_path) == TWO

    def test_standard_input_is_jsonl(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(JSONL)))
        assert read("-") == TWO

    def test_tsv_of_two_columns_needs_no_header_and_keeps_quotes(self, tmp_path):
        path = write(tmp_path / "c.tsv", '1\tsays "no\n2\t\n')
        assert read(path) == [Passage("1", 'says "no'), Passage("2", "")]

    def test_tsv_with_header(self, tmp_path):
        path = write(tmp_path / "c.tsv", "docid\ttitle\tbody\tlang\n7\tT\tB\tde\n")
        assert read(path) == [Passage("7", "B", "T", {"lang": "de"})]

    def test_tsv_of_three_columns_without_header_is_not_guessed(self, tmp_path):
        with pytest.raises(CorpusError, match=r"c\.tsv:1: 3 columns and no header"):
            read(write(tmp_path / "c.tsv", "1\tone\ttwo\n"))

    def test_csv_quoted_fields_may_span_lines(self, tmp_path):
        path = write(tmp_path / "c.csv", 'id,text\n1,"a, ""b""\nc"\n2,d\n')
        assert read(path) == [Passage("1", 'a, "b"\nc'), Passage("2", "d")]

    def test_csv_takes_a_field_beyond_the_csv_modules_default_limit(self, tmp_path):
        text = "x" * 200_000
        assert read(write(tmp_path / "c.csv", f"id,text\n1,{text}\n"))[0].text == text

    def test_csv_without_header_is_refused(self, tmp_path):
        with pytest.raises(CorpusError, match=r"c\.csv:1: the first line must name the columns"):
            read(write(tmp_path / "c.csv", "1,hello\n"))

    def test_parquet_keeps_types(self, tmp_path):
        import datetime

        table = pa.table(
            {
                "id": [1, 2],
                "text": ["x", "y"],
                "year": [1999, None],
                "day": [datetime.date(2020, 1, 2)] * 2,
                "tags": [["a"], []],
            }
        )
        pq.write_table(table, tmp_path / "c.parquet")
        first, second = read(tmp_path / "c.parquet")
        assert first == Passage("1", "x", "", {"year": 1999, "day": "2020-01-02", "tags": ["a"]})
        assert "year" not in second.metadata

    def test_damaged_parquet_is_a_corpus_error(self, tmp_path):
        with pytest.raises(CorpusError, match="cannot be opened as Parquet"):
            read(write(tmp_path / "c.parquet", b"nonsense"))

    def test_folder_of_text_files(self, tmp_path):
        write(tmp_path / "b.md", "# B")
        write(tmp_path / "sub" / "a.txt", "grüße")
        write(tmp_path / ".git" / "c.txt", "hidden")
        write(tmp_path / "d.pdf", b"%PDF")
        assert read(tmp_path) == [Passage("b.md", "# B"), Passage("sub/a.txt", "grüße")]

    def test_folder_without_texts(self, tmp_path):
        with pytest.raises(CorpusError, match=r"neither corpus\.jsonl"):
            read(tmp_path)

    def test_missing_file_and_unknown_suffix(self, tmp_path):
        with pytest.raises(CorpusError, match="no such file"):
            read(tmp_path / "absent.jsonl")
        with pytest.raises(CorpusError, match="tells no format"):
            read(write(tmp_path / "c.dat", JSONL))
        assert read(tmp_path / "c.dat", file_format="jsonl") == TWO
        with pytest.raises(InputError, match="unknown"):
            read(tmp_path / "c.dat", file_format="xml")

    @pytest.mark.parametrize(
        ("module", "name", "extra"),
        [("zstandard", "c.jsonl.zst", "zstd"), ("pyarrow", "c.parquet", "parquet")],
    )
    def test_missing_extra_is_named(self, tmp_path, monkeypatch, module, name, extra):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"diffretriever\[{extra}\]"):
            read(write(tmp_path / name, b""))

    def test_truncated_gzip_names_the_place(self, tmp_path):
        noise = "".join(json.dumps({"id": i, "text": sha256(str(i).encode()).hexdigest()}) + "\n" for i in range(2000))
        path = write(tmp_path / "c.jsonl.gz", gzip.compress(noise.encode())[:-200])
        with pytest.raises(CorpusError, match=r"c\.jsonl\.gz:\d+: .*(cannot be read any further|no JSON)"):
            read(path)

    @pytest.mark.parametrize("cut", [3, 30])
    def test_truncated_zstd_names_the_place(self, tmp_path, cut):
        path = write(tmp_path / "c.jsonl.zst", zstandard.compress(JSONL)[:-cut])
        with pytest.raises(CorpusError, match=r"c\.jsonl\.zst:\d+: cannot be read any further"):
            read(path)

    def test_damaged_zstd_names_the_place(self, tmp_path):
        with pytest.raises(CorpusError, match=r"c\.jsonl\.zst:1: cannot be read any further"):
            read(write(tmp_path / "c.jsonl.zst", b"no zstd at all"))

    def test_zstd_frames_may_follow_each_other(self, tmp_path):
        first, second = JSONL.splitlines(keepends=True)
        path = write(tmp_path / "c.jsonl.zst", zstandard.compress(first) + zstandard.compress(second))
        assert read(path) == TWO


class TestFields:
    @pytest.mark.parametrize("id_field", ["_id", "id", "passage_id", "docid"])
    @pytest.mark.parametrize("text_field", ["text", "contents", "body"])
    def test_usual_names(self, tmp_path, id_field, text_field):
        path = write(tmp_path / "c.jsonl", json.dumps({id_field: 5, text_field: "x", "title": None}))
        assert read(path) == [Passage("5", "x")]

    def test_metadata_object_and_other_fields_merge(self, tmp_path):
        record = {"id": "1", "text": "x", "lang": "en", "none": None, "metadata": {"n": 1.5, "ok": True, "l": ["a", 2]}}
        path = write(tmp_path / "c.jsonl", json.dumps(record))
        assert read(path)[0].metadata == {"lang": "en", "n": 1.5, "ok": True, "l": ["a", "2"]}

    def test_nested_metadata_becomes_its_json(self, tmp_path):
        path = write(tmp_path / "c.jsonl", json.dumps({"id": "1", "text": "x", "authors": [{"name": "é"}]}))
        assert read(path)[0].metadata == {"authors": '[{"name": "é"}]'}

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"text": "x"}, "lacks an id"),
            ({"id": "1"}, "lacks a text"),
            ({"id": "", "text": "x"}, "non-empty"),
            ({"id": 1.5, "text": "x"}, "id is 1.5"),
            ({"id": True, "text": "x"}, "id is True"),
            ({"id": "1", "text": None}, "text is None"),
            ({"id": "1", "text": ["x"]}, "text is"),
            ({"id": "1", "text": "x", "title": 3}, "title is 3"),
            ({"id": "1", "text": "x", "n": 2**70}, "beyond 64 bits"),
            ({"id": "1", "text": "x", "n": 1, "metadata": {"n": 2}}, "twice"),
            ({"id": "1", "text": "half \ud83d"}, "lone surrogate"),
        ],
    )
    def test_bad_record_names_file_and_line(self, tmp_path, record, message):
        path = write(tmp_path / "c.jsonl", '{"id": "0", "text": ""}\n\n' + json.dumps(record) + "\n")
        with pytest.raises(CorpusError, match=rf"c\.jsonl:3: .*{message}"):
            read(path)


BAD_LINES = {
    "cut": b'{"id": "1", "te',
    "array": b'["1", "x"]',
    "number": b"17",
    "nan": b'{"id": "1", "text": "x", "n": NaN}',
    "latin-1": b'{"id": "1", "text": "caf\xe9"}',
    "two objects": b'{"id": "1", "text": "x"} {"id": "2", "text": "y"}',
    "deep": b"[" * 100_000,
    "huge number": b'{"id": "1", "text": "x", "n": ' + b"9" * 5000 + b"}",
}


class TestBadLines:
    @pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
    def test_raise_names_the_line(self, tmp_path, bad):
        path = write(tmp_path / "c.jsonl", b'{"id": "0", "text": ""}\n' + bad + b'\n{"id": "9", "text": ""}\n')
        with pytest.raises(CorpusError, match=r"c\.jsonl:2: "):
            read(path)

    def test_report_goes_on_and_keeps_every_problem(self, tmp_path):
        path = write(tmp_path / "c.jsonl", b"\n".join([*BAD_LINES.values(), JSONL]))
        reader = PassageReader(path, on_error="report")
        for _ in range(2):  # a second reading starts its list anew
            assert list(reader) == TWO
            assert [p.line for p in reader.problems] == list(range(1, len(BAD_LINES) + 1))

    def test_duplicate_ids_name_both_lines(self, tmp_path):
        reader = read_passages(write(tmp_path / "c.jsonl", JSONL + JSONL), on_error="report")
        assert list(reader) == TWO
        assert [str(p).split("c.jsonl")[1] for p in reader.problems] == [
            ":3: id 'a' was already given in line 1; ids must be unique",
            ":4: id 'b' was already given in line 2; ids must be unique",
        ]

    def test_csv_goes_on_after_bad_records(self, tmp_path):
        raw = b'id,text\n1,ok\n2,"a"b\n3,caf\xe9\n4\n5,ok\n'
        reader = read_passages(write(tmp_path / "c.csv", raw), on_error="report")
        assert [p.passage_id for p in reader] == ["1", "5"]
        assert [p.line for p in reader.problems] == [3, 4, 5]
        assert "byte 0xe9" in reader.problems[1].message

    def test_tsv_bad_rows(self, tmp_path):
        reader = read_passages(write(tmp_path / "c.tsv", b"1\tok\n2\n3\tcaf\xe9\n\tno id\n"), on_error="report")
        assert [p.passage_id for p in reader] == ["1"]
        assert [p.line for p in reader.problems] == [2, 3, 4]

    def test_text_file_names_the_bad_line(self, tmp_path):
        write(tmp_path / "a.txt", b"one\ntwo\ncaf\xe9\n")
        write(tmp_path / "b.txt", b"fine")
        with pytest.raises(CorpusError, match=r"a\.txt:3: byte 0xe9"):
            read(tmp_path)

    def test_unknown_on_error(self):
        with pytest.raises(InputError, match="'raise' or 'report'"):
            read_passages("c.jsonl", on_error="ignore")


TEXTS = st.text(max_size=30)
PASSAGES = st.lists(
    st.builds(
        Passage,
        st.text(min_size=1, max_size=8),
        TEXTS,
        TEXTS,
        st.dictionaries(
            st.text(string.ascii_lowercase, min_size=1).map(lambda s: "m_" + s),
            TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.lists(TEXTS, max_size=2),
            max_size=3,
        ),
    ),
    max_size=6,
    unique_by=lambda p: p.passage_id,
)


def as_line(passage, ascii_only):
    record = {"_id": passage.passage_id, "title": passage.title, "text": passage.text, **passage.metadata}
    return json.dumps(record, ensure_ascii=ascii_only).encode()


@settings(max_examples=60)
@given(passages=PASSAGES, ascii_only=st.booleans())
def test_any_unicode_round_trips(tmp_path_factory, passages, ascii_only):
    path = tmp_path_factory.mktemp("r") / "c.jsonl"
    write(path, b"".join(as_line(p, ascii_only) + b"\n" for p in passages))
    assert read(path) == passages


@settings(max_examples=60)
@given(passages=PASSAGES.filter(bool), data=st.data())
def test_a_corrupted_line_is_always_named(tmp_path_factory, passages, data):
    lines = [as_line(p, True) for p in passages]
    victim = data.draw(st.integers(0, len(lines) - 1))
    cut = data.draw(st.integers(1, len(lines[victim]) - 1))
    lines[victim] = lines[victim][:cut]
    path = write(tmp_path_factory.mktemp("r") / "c.jsonl", b"\n".join(lines))
    reader = read_passages(path, on_error="report")
    assert list(reader) == passages[:victim] + passages[victim + 1 :]
    assert [p.line for p in reader.problems] == [victim + 1]
