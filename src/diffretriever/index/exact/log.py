"""SegmentLog: the file that says which segments of an exact store count, and what changed in them since.

One line per entry: the CRC-32 of the JSON text, a space, the text. The first line is a header, so a log that was lost
or emptied is told from a new one. An entry counts once its line is on disk.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from diffretriever.errors import IndexFormatError
from diffretriever.index.manifest import replace_file
from diffretriever.index.store import Metadata

LOG_FILE = "log.jsonl"
_HEADER = '{"log":1}'
#: What a write that was cut off may leave of a line; json.dumps writes ASCII alone.
_BEGINNING = re.compile(rb"[0-9a-f]{1,8}( (\{[ -~]*)?)?")


@dataclass(frozen=True)
class LogEntry:
    """One change of an exact store; only one of its kinds of change is set.

    Attributes:
        segment: name of a segment that counts from here on.
        sums: its files' sums, by name.
        delete: ids that are gone.
        metadata: new metadata by id.
        replaced: names of segments that a merge has replaced, which may be removed.
    """

    segment: str = ""
    sums: Mapping[str, str] = field(default_factory=dict)
    delete: tuple[str, ...] = ()
    metadata: Mapping[str, Metadata] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the entry as one line of JSON."""
        values = {"segment": self.segment, "sums": dict(self.sums), "delete": self.delete}
        values |= {"metadata": dict(self.metadata), "replaced": self.replaced}
        return json.dumps({name: value for name, value in values.items() if value}, separators=(",", ":"))

    @staticmethod
    def from_json(text: bytes) -> LogEntry:
        """Read what `to_json` wrote; anything else raises ValueError, TypeError or RecursionError."""
        about: dict[str, Any] = json.loads(text)
        for name in {"delete", "replaced"} & about.keys():
            about[name] = tuple(about[name])
        return LogEntry(**about)


class SegmentLog:
    """The log of one store."""

    def __init__(self, folder: Path) -> None:
        """Make ready the log of a store folder; `create` or `read` comes next."""
        self.path = folder / LOG_FILE
        self.lines = 0

    def create(self) -> None:
        """Write a log without entries."""
        self.rewrite([])

    def read(self) -> tuple[list[LogEntry], list[str]]:
        """Return the entries, and what is wrong with lines that cannot be read.

        A last line that was cut off while it was written is thrown away: its write was never acknowledged.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return [], [f"{self.path} is missing"]
        lines = raw.split(b"\n")
        tail = lines.pop()
        if tail and (_parse(tail) is not None or not _BEGINNING.fullmatch(tail)):
            lines.append(tail)  # all of it but the newline is there, or it is no beginning of a line
        if not lines or _parse(lines[0]) != _HEADER.encode():
            return [], [f"{self.path} does not begin as a log does ({raw[:40]!r})"]
        entries, problems = [], []
        for number, line in enumerate(lines[1:], 2):
            try:
                if (text := _parse(line)) is None:
                    raise ValueError("its sum does not match")
                entries.append(LogEntry.from_json(text))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                problems.append(f"{self.path}:{number} cannot be read ({error})")
        if not problems and not raw.endswith(b"\n"):
            self.rewrite(entries)
        self.lines = len(entries)
        return entries, problems

    def append(self, entry: LogEntry) -> None:
        """Add an entry; it is on disk when this returns."""
        size = self.path.stat().st_size
        with self.path.open("r+b") as file:
            try:
                file.seek(size)
                file.write(_line(entry.to_json()).encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # A half-written line must not stay in the way of the next one.
                file.truncate(size)
                raise
        self.lines += 1

    def rewrite(self, entries: Iterable[LogEntry]) -> None:
        """Replace the whole log in one step."""
        kept = list(entries)
        replace_file(self.path, _line(_HEADER) + "".join(_line(entry.to_json()) for entry in kept))
        self.lines = len(kept)

    def damaged(self, problems: Iterable[str]) -> IndexFormatError:
        """Return the error that says so."""
        return IndexFormatError(
            f"{'; '.join(list(problems)[:3])}; restore the index from a copy, rebuild it, or save what is left with "
            "`diffretriever check DIR --repair`"
        )


def _line(text: str) -> str:
    return f"{crc32(text.encode()):08x} {text}\n"


def _parse(line: bytes) -> bytes | None:
    """Return the text of a line, or None when its sum does not match."""
    text = line[9:]
    return text if line[:9] == f"{crc32(text):08x} ".encode() else None
