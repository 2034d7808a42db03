"""Passage: a text to be found, with its id, title and metadata."""

from __future__ import annotations

from dataclasses import dataclass, field

MetadataValue = str | int | float | bool | list[str]


@dataclass(frozen=True)
class Passage:
    """A text to be found.

    Attributes:
        passage_id: identifier, any non-empty string, unique in an index.
        text: the body; may be empty.
        title: the title; may be empty.
        metadata: typed fields that filters can ask for.
    """

    passage_id: str
    text: str
    title: str = ""
    metadata: dict[str, MetadataValue] = field(default_factory=dict)
