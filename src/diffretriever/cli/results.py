"""Results: hits laid out as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from diffretriever.explain import printable, words_text

if TYPE_CHECKING:
    from diffretriever.index import Hit
    from diffretriever.representations import SlotWord

_SNIPPET = 120


def hits_json(query: str, hits: Sequence[Hit], *, query_id: str | None = None) -> dict[str, object]:
    """Return the hits of one query as a JSON object."""
    head: dict[str, object] = {"query": query} if query_id is None else {"query_id": query_id, "query": query}
    return head | {"hits": [_hit_json(hit) for hit in hits]}


def dumps(value: object) -> str:
    """Return one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def _hit_json(hit: Hit) -> dict[str, object]:
    return {
        "rank": hit.rank,
        "passage_id": hit.passage_id,
        "score": hit.score,
        "dense": hit.dense,
        "sparse": hit.sparse,
        "exact": hit.exact,
        "title": hit.title,
        "text": hit.text,
        "metadata": hit.metadata,
        "slot_words": [[{"word": w.word, "probability": w.probability} for w in slot] for slot in hit.slot_words],
    }


def hits_table(hits: Sequence[Hit]) -> RenderableType:
    """Return a table of hits: rank, score, title and start of the text, and the first word that each slot predicts."""
    table = Table(show_lines=True)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("passage", ratio=3)
    with_words = any(hit.slot_words for hit in hits)
    if with_words:
        table.add_column("slot words", ratio=2)
    for hit in hits:
        cells = [Text(str(hit.rank)), Text(f"{hit.score:.3f}"), _passage(hit)]
        if with_words:
            cells.append(Text(first_words(hit.slot_words)))
        table.add_row(*cells)
    return table


def _passage(hit: Hit) -> Text:
    body = printable(hit.text)
    snippet = body if len(body) <= _SNIPPET else body[:_SNIPPET].rsplit(" ", 1)[0] + " …"
    parts = [(f"{printable(hit.passage_id)}  ", "dim")]
    if hit.title:
        parts.append((printable(hit.title) + "\n", "bold"))
    return Text.assemble(*parts, snippet)


def first_words(slots: Sequence[Sequence[SlotWord]]) -> str:
    """Return the first word of every slot, each once, in slot order."""
    seen = dict.fromkeys(printable(slot[0].word) for slot in slots if slot)
    return " ".join(word for word in seen if word)


def query_words(slots: Sequence[Sequence[SlotWord]], words: int = 3) -> str:
    """Return what each slot of a query predicts, slot by slot."""
    return " | ".join(words_text(list(slot), words) for slot in slots)
