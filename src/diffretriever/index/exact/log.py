"""SegmentLog: the file that says which segments of an exact store count, and what changed in them since.

One line per entry: the CRC-32 of the JSON text, a space, the text. The first line is a header, so a log that was lost
or emptied is told from a new one. An entry counts once its line is on disk.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, cast
from zlib import crc32

from diffretriever.errors import IndexFormatError
from diffretriever.index.manifest import sync_folder, write_beside
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
        # Where a line begins that may be on disk, whole or in part, though its write failed.
        self._loose: int | None = None
        # Whether a power cut may bring back the log that was replaced.
        self._unsynced = False

    def create(self) -> None:
        """Write a log without entries."""
        self.rewrite([])
        self.settle()

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
            self.settle()
        self.lines = len(entries)
        return entries, problems

    def append(self, entry: LogEntry) -> None:
        """Add an entry; it is on disk when this returns, and does not count when this raises.

        Where the disk does not even let the line be taken back, `is_settled` is false afterwards, and the entry may
        count until `settle` has succeeded.
        """
        self.settle()
        # Without a buffer, which would write what is left of the line again when the file is closed.
        with self.path.open("r+b", buffering=0) as file:
            self._loose = file.seek(0, os.SEEK_END)
            try:
                _write_all(file, _line(entry.to_json()).encode())
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):  # what went wrong first is what matters
                    self._take_back(file)
                raise
        self.lines += 1
        self._loose = None

    def rewrite(self, entries: Iterable[LogEntry]) -> None:
        """Replace the whole log in one step; what only the old one names is needed until `settle` has succeeded."""
        kept = list(entries)
        new = write_beside(self.path, _line(_HEADER) + "".join(_line(entry.to_json()) for entry in kept))
        self._unsynced = True
        os.replace(new, self.path)
        self.lines, self._loose = len(kept), None

    @property
    def is_settled(self) -> bool:
        """Whether the log on disk is certain to hold the acknowledged entries and no other."""
        return self._loose is None and not self._unsynced

    def settle(self) -> None:
        """Bring to an end what a failure left open; OSError when the disk does not let it."""
        if self._loose is not None:
            with self.path.open("r+b", buffering=0) as file:
                self._take_back(file)
        if self._unsynced:
            sync_folder(self.path.parent)
            self._unsynced = False

    def _take_back(self, file: FileIO) -> None:
        """Cut off the loose line, which would stay in the way of the next one, or count though nobody was told so."""
        os.ftruncate(file.fileno(), cast(int, self._loose))
        os.fsync(file.fileno())
        self._loose = None

    def damaged(self, problems: Iterable[str]) -> IndexFormatError:
        """Return the error that says so."""
        return IndexFormatError(
            f"{'; '.join(list(problems)[:3])}; restore the index from a copy, rebuild it, or save what is left with "
            "`diffretriever check DIR --repair`"
        )


def _write_all(file: FileIO, line: bytes) -> None:
    """Write a line; a disk that is nearly full takes a part of it before it says so."""
    left = memoryview(line)
    while left:
        left = left[file.write(left) :]


def _line(text: str) -> str:
    return f"{crc32(text.encode()):08x} {text}\n"


def _parse(line: bytes) -> bytes | None:
    """Return the text of a line, or None when its sum does not match."""
    text = line[9:]
    return text if line[:9] == f"{crc32(text):08x} ".encode() else None
