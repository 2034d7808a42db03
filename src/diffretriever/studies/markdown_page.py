"""Markdown: a document as a text file with its figures beside it, for documentation."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from diffretriever.studies.document import Block, Cell, Document, Listing, Paragraph, Table
from diffretriever.studies.figures.style import Figure


def write_markdown(document: Document, path: Path) -> None:
    """Write the document, and its figures as SVG files into a folder of the same name.

    Args:
        document: what is written.
        path: the file; `results.md` gets the folder `results`.
    """
    folder = path.with_suffix("")
    if document.figures:
        folder.mkdir(parents=True, exist_ok=True)
    for figure in document.figures:
        (folder / f"{figure.name}.svg").write_text(figure.standing(), encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_markdown(document, folder.name), encoding="utf-8")


def to_markdown(document: Document, folder: str) -> str:
    """Return the text; figures are looked for in `folder`."""
    parts = [f"# {_plain(document.title)}", _plain(document.lead)]
    for section in document.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_block(block, folder) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, folder: str) -> str:
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Listing):
        # A fence longer than any run of back-quotes in the lines cannot be closed by them.
        longest = max((len(run) for line in block.lines for run in re.findall("`+", line)), default=0)
        fence = "`" * max(3, longest + 1)
        return "\n".join([fence + "text", *block.lines, fence])
    if isinstance(block, Figure):
        # A blank or a parenthesis would end the address.
        image = f"![{_plain(block.title)}]({quote(folder, safe='')}/{block.name}.svg)"
        return f"{image}\n\n*{_plain(block.title)}.* {_plain(block.caption)}"
    return _table(block)


def _table(table: Table) -> str:
    rule = ["---" if i < table.words else "---:" for i in range(len(table.head))]
    rows = [_row([_plain(name) for name in table.head]), "|" + "|".join(rule) + "|"]
    rows += [_row([_cell(cell) for cell in row]) for row in table.rows]
    parts = [f"**{_plain(table.title)}**", "\n".join(rows), _plain(table.note)]
    return "\n\n".join(part for part in parts if part)


def _row(texts: list[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _cell(cell: Cell) -> str:
    text = f"**{_plain(cell.text)}**" if cell.strong and cell.text else _plain(cell.text)
    return text + _plain(cell.mark)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", " ".join(text.split()))
