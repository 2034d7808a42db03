"""HTML: a document as one file that needs no other: no script, no request, light and dark."""

from __future__ import annotations

from html import escape

from diffretriever.studies.document import Block, Cell, Document, Listing, Paragraph, Table
from diffretriever.studies.figures.style import Figure

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --soft: #59636e; --grid: #d8dee4; --row: #f6f8fa;
  --link: #0550ae; --blue: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9198a1; --grid: #3d444d;
  --row: #151b23; --link: #79c0ff; --blue: #3d9be0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--grid); }
p { max-width: 46rem; }
.lead, .note, figcaption { color: var(--soft); }
.note, figcaption { font-size: .875rem; max-width: 54rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; }
a { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th.word { text-align: left; }
thead th { border-bottom: 2px solid var(--grid); vertical-align: bottom; }
tbody th { font-weight: inherit; }
tbody tr:nth-child(even) { background: var(--row); }
sup { line-height: 0; }
figure { margin: 1.5rem 0 2rem; }
figure .scroll { padding-bottom: .25rem; }
svg.figure { display: block; max-width: 100%; height: auto; }
figcaption b { color: var(--ink); display: block; }
pre { background: var(--row); border: 1px solid var(--grid); border-radius: 6px; padding: .75rem 1rem; overflow-x: auto;
  font-size: .82rem; line-height: 1.5; }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def to_html(document: Document) -> str:
    """Return the page; every text is escaped."""
    anchors = [f"s{number}" for number in range(1, len(document.sections) + 1)]
    links = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
        for anchor, section in zip(anchors, document.sections, strict=True)
    )
    body = "\n".join(
        f'<section>\n<h2 id="{anchor}">{escape(section.title)}</h2>\n'
        + "\n".join(map(_block, section.blocks))
        + "\n</section>"
        for anchor, section in zip(anchors, document.sections, strict=True)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{escape(document.title)}</h1>\n<p class="lead">{escape(document.lead)}</p>\n'
        f"<nav><ul>{links}</ul></nav>\n</header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Listing):
        return f"<pre{_region('lines')}>" + "\n".join(escape(line) for line in block.lines) + "</pre>"
    if isinstance(block, Figure):
        caption = f"<figcaption><b>{escape(block.title)}</b>{escape(block.caption)}</figcaption>"
        return f"<figure>\n{block.inline()}\n{caption}\n</figure>"
    return _table(block)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"{_word(i, table.words)}>{escape(name)}</th>' for i, name in enumerate(table.head))
    rows = "\n".join(
        "<tr>" + "".join(_entry(cell, header=i < table.words) for i, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"{_region(table.title)}><table>\n<caption>{escape(table.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>{note}"
    )


def _word(column: int, words: int) -> str:
    return ' class="word"' if column < words else ""


def _region(name: str) -> str:
    """Return the attributes of a part that may be wider than the page, so that keys scroll it as well."""
    return f' tabindex="0" role="region" aria-label="{escape(name)}"'


def _entry(cell: Cell, *, header: bool) -> str:
    return f'<th scope="row" class="word">{_cell(cell)}</th>' if header else f"<td>{_cell(cell)}</td>"


def _cell(cell: Cell) -> str:
    text = f"<strong>{escape(cell.text)}</strong>" if cell.strong else escape(cell.text)
    said = f' role="img" aria-label="{escape(cell.meaning)}"' if cell.meaning else ""
    return text + (f"<sup{said}>{escape(cell.mark)}</sup>" if cell.mark else "")
