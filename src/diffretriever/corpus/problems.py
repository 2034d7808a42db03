"""Problem: one line of an input file that cannot be used, and why."""

from __future__ import annotations

from typing import Literal, NamedTuple

OnError = Literal["raise", "report"]


class Problem(NamedTuple):
    """A line, row or file that holds no usable record.

    Attributes:
        source: the file it stands in.
        line: its number from 1 (a row of a Parquet file; 0 when the whole file is meant).
        message: what is wrong, the value seen, what to do.
    """

    source: str
    line: int
    message: str

    def __str__(self) -> str:
        """Show as compilers do: file, line, message."""
        place = f"{self.source}:{self.line}" if self.line else self.source
        return f"{place}: {self.message}"


def shorten(value: object, width: int = 60) -> str:
    """Return a readable form of a value of at most `width` characters, for messages."""
    shown = repr(value)
    return shown if len(shown) <= width else shown[: width - 1] + "…"
