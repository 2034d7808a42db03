"""Topics: queries in the formats of TREC.

`.tsv` and `.jsonl` are those of `read_queries`. Any other file whose first line with text begins with `<` is TREC's
SGML: topics between `<top>` and `</top>`, each with `<num>` and `<title>`, and perhaps `<desc>` and `<narr>`; closing
tags of fields are optional, and so are the words "Number:", "Topic:", "Description:" and "Narrative:" after them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from diffretriever.corpus import Query, read_queries
from diffretriever.corpus.lines import Line, numbered_lines
from diffretriever.corpus.problems import Problem, shorten
from diffretriever.errors import CorpusError

TopicField = Literal["title", "desc", "narr"]

_TAG = re.compile(r"<(/?)(top|num|title|desc|narr)>", re.IGNORECASE)
_LABEL = re.compile(r"^\s*(number|topic|description|narrative)\s*:", re.IGNORECASE)
_PLAIN_SUFFIXES = {".tsv", ".jsonl", ".json"}


@dataclass
class _Topic:
    """A topic being read: the line it starts in, and the text of each of its fields."""

    line: int
    fields: dict[str, str] = field(default_factory=dict)


def read_topics(source: str | Path, topic_field: TopicField = "title") -> list[Query]:
    """Return the queries of a topics file, in its order.

    Args:
        source: `.tsv` (id, tab, text), `.jsonl`, plain lines, or SGML; each also `.gz` or `.zst`.
        topic_field: which field of an SGML topic is the query.

    Raises:
        CorpusError: the file cannot be read, or a line is bad; names file and line.
    """
    path = Path(source)
    if path.is_dir() or _PLAIN_SUFFIXES & {s.lower() for s in path.suffixes} or not _is_sgml(path):
        return read_queries(source)
    queries: list[Query] = []
    lines: dict[str, int] = {}
    for topic in _topics(path):
        query = _query(str(path), topic, topic_field)
        if query.query_id in lines:
            first = lines[query.query_id]
            what = f"topic {query.query_id!r} was already given in line {first}; numbers must be unique"
            raise CorpusError(f"{path}:{topic.line}: {what}")
        lines[query.query_id] = topic.line
        queries.append(query)
    if not queries:
        raise CorpusError(f"{path}: holds no topic")
    return queries


def _is_sgml(path: Path) -> bool:
    for line in numbered_lines(path):
        if isinstance(line, Problem):
            raise CorpusError(str(line))
        if line.raw.strip():
            return line.raw.lstrip().startswith(b"<")
    return False


def _topics(path: Path) -> Iterator[_Topic]:
    """Yield the topics of an SGML file; text outside of topics is passed over."""
    parser = _Parser(path)
    for number, text in _texts(path):
        position = 0
        for tag in _TAG.finditer(text):
            parser.text(text[position : tag.start()])
            position = tag.end()
            name, closing = tag[2].lower(), bool(tag[1])
            if name != "top":
                parser.field(number, name, closing=closing)
            elif closing:
                yield parser.end(number)
            else:
                parser.begin(number)
        parser.text(text[position:] + "\n")
    parser.finish()


class _Parser:
    """The state between two tags: the open topic and the open field in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._topic: _Topic | None = None
        self._field = ""

    def text(self, text: str) -> None:
        """Take the text up to the next tag or line end."""
        if self._topic is not None and self._field:
            self._topic.fields[self._field] += text

    def begin(self, line: int) -> None:
        """Take a `<top>`."""
        if self._topic is not None:
            raise self._error(line, f"<top> inside the topic of line {self._topic.line}; end that by </top>")
        self._topic, self._field = _Topic(line), ""

    def end(self, line: int) -> _Topic:
        """Take a `</top>` and return its topic."""
        if self._topic is None:
            raise self._error(line, "</top> without a <top> before it")
        topic, self._topic, self._field = self._topic, None, ""
        return topic

    def field(self, line: int, name: str, *, closing: bool) -> None:
        """Take the tag of a field."""
        if self._topic is None:
            raise self._error(line, f"<{name}> outside of a topic; put <top> before it")
        if not closing and name in self._topic.fields:
            raise self._error(line, f"a second <{name}> in one topic; end topics by </top>")
        self._field = "" if closing else name
        if self._field:
            self._topic.fields[name] = ""

    def finish(self) -> None:
        """Take the end of the file."""
        if self._topic is not None:
            raise self._error(self._topic.line, "the topic that starts here has no </top>")

    def _error(self, line: int, what: str) -> CorpusError:
        return CorpusError(f"{self._path}:{line}: {what}")


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    for line in numbered_lines(path):
        if isinstance(line, Problem):
            raise CorpusError(str(line))
        yield line.number, _decoded(path, line)


def _decoded(path: Path, line: Line) -> str:
    try:
        return line.text()
    except UnicodeDecodeError as error:
        byte = line.raw[error.start]
        raise CorpusError(f"{path}:{line.number}: byte 0x{byte:02x} is no UTF-8; convert the file") from error


def _query(name: str, topic: _Topic, topic_field: TopicField) -> Query:
    number, text = (_content(topic.fields.get(f, "")) for f in ("num", topic_field))
    if not number or len(number.split()) > 1:
        raise CorpusError(f"{name}:{topic.line}: the topic needs one number in <num>, got {shorten(number)}")
    if not text:
        raise CorpusError(f"{name}:{topic.line}: topic {number} has no text in <{topic_field}>")
    return Query(number, text)


def _content(text: str) -> str:
    return " ".join(_LABEL.sub("", text).split())
