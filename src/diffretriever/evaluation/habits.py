"""Habits: what the field does otherwise on some collections, known by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Collections whose queries are passages of the corpus: BEIR drops the passage that has the id of the query.
_OWN_IDS = re.compile(r"\b(arguana|quora)\b")
#: Passages judged on four levels, where trec_eval is told that 1 is not relevant: binary measures begin at 2. On the
#: documents of the same tracks 1 is relevant.
_GRADED = re.compile(r"\bdl-?((20)?(19|2[0-3])(?!\d)|hard\b)")
_DOCUMENTS = re.compile(r"\bdoc(ument)?s?\b")


def drops_own_ids(collection: str) -> bool:
    """Return whether a passage with the id of its query is left out on this collection."""
    return bool(_OWN_IDS.search(_plain(collection)))


def default_measures(collection: str, depth: int) -> tuple[str, ...]:
    """Return the measures of a collection: nDCG@10, and recall at 100 and 1,000 as far as rankings go."""
    name = _plain(collection)
    relevant = "(rel=2)" if _GRADED.search(name) and not _DOCUMENTS.search(name) else ""
    cuts: Sequence[int] = [cut for cut in (100, 1000) if cut <= depth] or [depth]
    return ("nDCG@10", *(f"R{relevant}@{cut}" for cut in cuts))


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
