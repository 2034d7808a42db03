"""Lines: the numbered raw lines of a plain or compressed file."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from diffretriever.corpus.problems import Problem
from diffretriever.errors import CorpusError, MissingExtraError

if TYPE_CHECKING:
    from typing_extensions import Buffer

STDIN = "-"
COMPRESSIONS = (".gz", ".zst")
#: Bytes of the longest line that is read: a small compressed file may hold a line that fills the memory.
LONGEST_LINE = 1 << 28
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line of a file: its number from 1 and its bytes without the line end."""

    number: int
    raw: bytes

    def text(self) -> str:
        """Return the line as text.

        Raises:
            UnicodeDecodeError: the bytes are no UTF-8.
        """
        return self.raw.decode("utf-8")


def source_name(source: str | Path) -> str:
    """Return the name of an input as messages show it."""
    return "<stdin>" if str(source) == STDIN else str(source)


def numbered_lines(source: str | Path) -> Iterator[Line | Problem]:
    """Yield the lines of a file, of its decompressed content, or of standard input (`-`).

    Lines end at a line feed alone (a carriage return before it is dropped): the other line separators of Unicode
    may stand inside a JSON string. Yields a `Problem` for a line of more than 256 MiB, and one, and stops, where a
    compressed stream is damaged.

    Raises:
        CorpusError: the file does not exist or cannot be opened.
        MissingExtraError: the file is compressed with Zstandard and the extra `zstd` is not installed.
    """
    number = 0
    with open_bytes(source) as stream:
        try:
            for number, raw in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), 1):
                if number == 1:
                    raw = raw.removeprefix(_BYTE_ORDER_MARK)
                if len(raw) >= LONGEST_LINE and not raw.endswith(b"\n"):
                    yield Problem(source_name(source), number, f"longer than {LONGEST_LINE:,} bytes; split the text")
                    _skip_line(stream)
                    continue
                yield Line(number, raw.removesuffix(b"\n").removesuffix(b"\r"))
        except (OSError, EOFError, zlib.error) as error:
            message = f"cannot be read any further after line {number} ({error}); copy or download the file again"
            yield Problem(source_name(source), number + 1, message)


def _skip_line(stream: IO[bytes]) -> None:
    while (raw := stream.readline(1 << 20)) and not raw.endswith(b"\n"):
        pass


@contextmanager
def open_bytes(source: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, decompressed according to its name; `-` is standard input."""
    if str(source) == STDIN:
        yield sys.stdin.buffer
        return
    path = Path(source)
    try:
        raw: IO[bytes] = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise CorpusError(f"{str(path)!r}: cannot be opened ({reason}); check the path") from error
    with raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as stream:
                yield io.BufferedReader(stream)
        elif path.suffix == ".zst":
            yield io.BufferedReader(_zstd_stream(raw), buffer_size=1 << 20)
        else:
            yield raw


def _zstd_stream(raw: IO[bytes]) -> io.RawIOBase:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "zstd", "reading a .zst file") from error

    def pieces() -> Iterator[bytes]:
        # zstandard's own stream reader ends without a word where a frame is cut off; its frame decoder tells.
        frame = None
        while data := raw.read(1 << 17):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error
                data = frame.unused_data
                if frame.eof:
                    frame = None
        if frame is not None:
            raise EOFError("the compressed stream is cut off")

    return _Pieces(pieces())


class _Pieces(io.RawIOBase):
    """Byte strings of any length as one readable stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        target = memoryview(buffer)
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
