"""Index: a searchable collection of passages, over one of several engines."""

from __future__ import annotations

from diffretriever.index.calibration import Calibration, Recall
from diffretriever.index.filter_text import parse_filter
from diffretriever.index.filters import AllOf, AnyOf, Equals, Filter, Not, OneOf, Range
from diffretriever.index.hit import Hit
from diffretriever.index.index import Index
from diffretriever.index.integrity.checking import CheckReport
from diffretriever.index.manifest import Manifest
from diffretriever.index.searching import Mode
from diffretriever.index.stats import IndexStats
from diffretriever.index.storage.storage import Storage
from diffretriever.index.store import Store, StoredPassage
from diffretriever.index.transfer import Transfer, copy_index

__all__ = [
    "AllOf",
    "AnyOf",
    "Calibration",
    "CheckReport",
    "Equals",
    "Filter",
    "Hit",
    "Index",
    "IndexStats",
    "Manifest",
    "Mode",
    "Not",
    "OneOf",
    "Range",
    "Recall",
    "Storage",
    "Store",
    "StoredPassage",
    "Transfer",
    "copy_index",
    "parse_filter",
]
