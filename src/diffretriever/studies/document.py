"""Document: sections of paragraphs, tables and figures, before it is known whether they become HTML or Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from diffretriever.studies.figures.style import Figure


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        mark: a sign set above the line, such as a dagger.
        strong: whether it stands out, as the best of its column does.
        meaning: what the sign means, for those who hear the page.
    """

    text: str
    mark: str = ""
    strong: bool = False
    meaning: str = ""


@dataclass(frozen=True)
class Table:
    """A table; every column but the first `words`, which tell the rows apart, holds numbers.

    Attributes:
        title: what it shows.
        head: names of the columns.
        rows: the cells.
        words: number of columns of words, at the left.
        note: what the marks mean, and the like.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    note: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Lines to be shown as they are, such as commands."""

    lines: tuple[str, ...]


Block = Table | Paragraph | Listing | Figure


@dataclass(frozen=True)
class Section:
    """A part of the document under one heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """Everything that is shown.

    Attributes:
        title: heading of the page.
        lead: a sentence below it.
        sections: the parts.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]

    @property
    def figures(self) -> list[Figure]:
        """Every figure, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def cells(*texts: str) -> tuple[Cell, ...]:
    """Return a row of plain cells."""
    return tuple(Cell(text) for text in texts)
