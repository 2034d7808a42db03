"""Notes: small texts that stay with an index, in its folder or its collection."""

from __future__ import annotations

from diffretriever.errors import InputError
from diffretriever.index.home import IndexHome
from diffretriever.index.reading import IndexReader

#: The prompt of the encoder, as JSON, so that a template from a file or a checkpoint is found again.
PROMPT_NOTE = "prompt.json"


def read_note(index: IndexReader, name: str) -> str | None:
    """Return a note of an open index; None if there is none of that name."""
    return _home(index).read_note(name)


def write_note(index: IndexReader, name: str, text: str) -> None:
    """Keep a note with an open index, in place of one of the same name."""
    _home(index).write_note(name, text)


def _home(index: IndexReader) -> IndexHome:
    if index._home is None:
        raise InputError("an index in memory keeps no notes; give it a folder")
    return index._home
