"""Queries: read from BEIR JSONL, from tab-separated lines, or from plain lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffretriever.corpus.lines import STDIN, Line, numbered_lines, source_name
from diffretriever.corpus.problems import Problem, shorten
from diffretriever.corpus.records import ID_FIELDS, RecordError, first_field, identifier, text_value, well_formed
from diffretriever.corpus.rows import Row, find_jsonl, read_rows
from diffretriever.errors import CorpusError

QUERY_ID_FIELDS = (*ID_FIELDS, "query_id", "qid")
QUERY_TEXT_FIELDS = ("text", "query", "contents", "body", "title")


class Query(NamedTuple):
    """A question or claim with its id."""

    query_id: str
    text: str


def read_queries(source: str | Path) -> list[Query]:
    """Return the queries of a file, in its order.

    `.jsonl` (also `.gz`, `.zst`; `-` for standard input): an object per line with `_id` and `text`; a folder: its
    `queries.jsonl`; `.tsv`: id, tab, text; anything else: one query per line, its line number the id.

    Raises:
        CorpusError: the source cannot be read or a line is bad; names file and line.
    """
    queries: list[Query] = []
    lines: dict[str, int] = {}
    for item in _queries(Path(source) if str(source) != STDIN else STDIN):
        if isinstance(item, Problem):
            raise CorpusError(str(item))
        number, query = item
        if query.query_id in lines:
            first = lines[query.query_id]
            what = f"query id {shorten(query.query_id)} was already given in line {first}; ids must be unique"
            raise CorpusError(str(Problem(source_name(source), number, what)))
        lines[query.query_id] = number
        queries.append(query)
    if not queries:
        raise CorpusError(f"{source_name(source)}: holds no query")
    return queries


def _queries(source: str | Path) -> Iterator[tuple[int, Query] | Problem]:
    if isinstance(source, Path) and os.path.isdir(source):
        found = find_jsonl(source, "queries")
        if found is None:
            raise CorpusError(f"{source}: no queries.jsonl, queries.jsonl.gz or queries.jsonl.zst in this folder")
        source = found
    suffixes = [s.lower() for s in source.suffixes] if isinstance(source, Path) else [".jsonl"]
    if ".jsonl" in suffixes or ".json" in suffixes:
        for row in read_rows(source, "jsonl"):
            yield row if isinstance(row, Problem) else _from_row(row)
        return
    for line in numbered_lines(source):
        if isinstance(line, Problem):
            yield line
        elif line.raw.strip():
            yield _from_line(source_name(source), line, tabbed=".tsv" in suffixes)


def _from_row(row: Row) -> tuple[int, Query] | Problem:
    try:
        id_field = first_field(row.fields, QUERY_ID_FIELDS, "an id")
        text_field = first_field(row.fields, QUERY_TEXT_FIELDS, "a text")
        query = Query(identifier(id_field, row.fields[id_field]), text_value(text_field, row.fields[text_field]))
    except RecordError as error:
        return Problem(row.source, row.line, str(error))
    return row.line, query


def _from_line(name: str, line: Line, *, tabbed: bool) -> tuple[int, Query] | Problem:
    text = line.raw.decode("utf-8", "surrogateescape")
    query_id = str(line.number)
    if tabbed:
        query_id, tab, text = text.partition("\t")
        if not tab or not query_id:
            return Problem(name, line.number, f"{shorten(line.raw)} is no id, tab, text")
    try:
        return line.number, Query(well_formed("the id", query_id), well_formed("the query", text))
    except RecordError as error:
        return Problem(name, line.number, str(error))
