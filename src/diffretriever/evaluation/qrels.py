"""Qrels: the judgements that say which passages answer which query."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from diffretriever.corpus.lines import Line, numbered_lines
from diffretriever.corpus.problems import Problem, shorten
from diffretriever.errors import CorpusError


class Qrel(NamedTuple):
    """One judgement: how relevant a passage is to a query (0 = judged and not relevant)."""

    query_id: str
    passage_id: str
    relevance: int


#: What becomes of several judgements of one pair (several judges): an error, or the highest relevance of them.
Repeats = Literal["refuse", "highest"]


def read_qrels(path: str | Path, repeats: Repeats = "refuse") -> list[Qrel]:
    """Return the judgements of a file, in its order.

    Three columns under a header line are BEIR's (query-id, corpus-id, score); four are TREC's (query, 0, passage,
    relevance).

    Args:
        path: the file.
        repeats: what becomes of a pair that is judged more than once.

    Raises:
        CorpusError: the file cannot be read, a line is bad, or a pair is judged twice; names file and line.
    """
    qrels: dict[tuple[str, str], Qrel] = {}
    lines: dict[tuple[str, str], int] = {}
    for line in numbered_lines(path):
        if isinstance(line, Problem):
            raise CorpusError(str(line))
        if not line.raw.strip():
            continue
        qrel = _qrel(str(path), line)
        if qrel is None:
            continue
        pair = qrel.query_id, qrel.passage_id
        first = lines.setdefault(pair, line.number)
        if first != line.number and repeats == "refuse":
            raise CorpusError(
                f"{path}:{line.number}: query {pair[0]!r} and passage {pair[1]!r} were already judged in line {first}; "
                "keep one line, or take the highest of repeated judgements (--repeats highest)"
            )
        qrels[pair] = max(qrel, qrels.get(pair, qrel))
    if not qrels:
        raise CorpusError(f"{path}: holds no judgement")
    return list(qrels.values())


def _qrel(name: str, line: Line) -> Qrel | None:
    """Return the judgement of a line, None for a header line."""
    place = f"{name}:{line.number}"
    try:
        text = line.text()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{place}: byte 0x{line.raw[error.start]:02x} is no UTF-8; convert the file") from error
    # BEIR separates by tabs, and its ids may hold spaces; TREC separates by any white space.
    cells = text.split("\t") if text.count("\t") == 2 else text.split()
    if len(cells) not in (3, 4):
        expected = "3 (query-id, corpus-id, score) or 4 (query, 0, passage, relevance)"
        raise CorpusError(f"{place}: {len(cells)} columns, expected {expected}: {shorten(text)}")
    if line.number == 1 and cells[0] in ("query-id", "query_id", "qid"):
        return None
    query_id, passage_id, relevance = cells[0], cells[-2], cells[-1].strip()
    if not query_id.strip() or not passage_id.strip():
        raise CorpusError(f"{place}: an id is empty: {shorten(text)}")
    try:
        return Qrel(query_id, passage_id, int(relevance))
    except ValueError as error:
        raise CorpusError(f"{place}: relevance {shorten(relevance)} is no whole number: {shorten(text)}") from error
