"""Notes: small texts that stay with an index, in its folder or its collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from diffretriever.errors import InputError
from diffretriever.index.home import IndexHome
from diffretriever.index.manifest import replace_file
from diffretriever.index.reading import IndexReader

if TYPE_CHECKING:
    from diffretriever.index.cluster.collection import ClusterCollection

#: The prompt of the encoder, as JSON, so that a template from a file or a checkpoint is found again.
PROMPT_NOTE = "prompt.json"


def read_note(index: IndexReader, name: str) -> str | None:
    """Return a note of an open index; None if there is none of that name."""
    home = _home(index)
    if isinstance(home.path, Path):
        file = home.path / name
        return file.read_text(encoding="utf-8") if file.is_file() else None
    return cast("ClusterCollection", home).read_note(name)


def write_note(index: IndexReader, name: str, text: str) -> None:
    """Keep a note with an open index, in place of one of the same name."""
    home = _home(index)
    if isinstance(home.path, Path):
        replace_file(home.path / name, text)
    else:
        cast("ClusterCollection", home).write_note(name, text)


def _home(index: IndexReader) -> IndexHome:
    if index._home is None:
        raise InputError("an index in memory keeps no notes; give it a folder")
    return index._home
