"""Checks of what callers hand to an index, before anything is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from diffretriever.corpus import MetadataValue, Passage
from diffretriever.errors import InputError
from diffretriever.index.store import Metadata
from diffretriever.representations import Representations

_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def checked_passages(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Yield the passages, checked and with text that any engine can store.

    A lone surrogate in a text, title or metadata string, which no UTF-8 file can hold, becomes U+FFFD, as it does for
    the encoder.

    Raises:
        InputError: something is no passage, an id is empty, not valid unicode or given twice, or metadata have
            values of another type.
    """
    seen: set[str] = set()
    for number, passage in enumerate(passages, 1):
        if not isinstance(passage, Passage):
            raise InputError(
                f"passage number {number} is a {type(passage).__name__}; give Passage(passage_id, text, title, "
                "metadata) objects, such as read_passages yields"
            )
        check_id(passage.passage_id, f"passage number {number}")
        if passage.passage_id in seen:
            raise InputError(f"passage id {passage.passage_id!r} is given twice (again at number {number}); keep one")
        seen.add(passage.passage_id)
        yield replace(
            passage,
            text=_text(passage.text, passage, "text"),
            title=_text(passage.title, passage, "title"),
            metadata=checked_metadata(passage.metadata, passage.passage_id),
        )


def check_id(passage_id: object, whose: str) -> None:
    """Raise InputError unless `passage_id` is a string that can be an id."""
    if not isinstance(passage_id, str):
        raise InputError(f"{whose} has the id {passage_id!r}; an id is a string")
    if not passage_id:
        raise InputError(f"{whose} has an empty id; give every passage an id of its own")
    if _LONE_SURROGATES.search(passage_id):
        raise InputError(f"{whose} has the id {passage_id!r}, which holds a lone surrogate; use valid unicode")


def checked_metadata(metadata: Mapping[str, MetadataValue], passage_id: str) -> Metadata:
    """Return a copy of the metadata whose values are strings, finite numbers, bools or lists of strings."""
    return {_text(key, passage_id, "metadata key"): _value(key, value, passage_id) for key, value in metadata.items()}


def check_aligned(passages: Sequence[Passage], representations: Representations) -> None:
    """Raise InputError unless there is one finite representation per passage."""
    if len(passages) != len(representations):
        raise InputError(f"{len(passages)} passages for {len(representations)} representations; give one for each")
    check_finite(representations, [f"passage {passage.passage_id!r}" for passage in passages])


def check_finite(representations: Representations, names: Sequence[str]) -> None:
    """Raise InputError, naming the first text, when a vector or weight is not a finite number."""
    vectors = np.isfinite(representations.dense).all(axis=1)
    if not vectors.all():
        bad = int(np.searchsorted(representations.offsets, np.flatnonzero(~vectors)[0], side="right")) - 1
    elif not (pooled := np.isfinite(representations.pooled).all(axis=1)).all():
        bad = int(np.flatnonzero(~pooled)[0])
    elif not (weights := np.isfinite(representations.sparse.data)).all():
        bad = int(np.searchsorted(representations.sparse.indptr, np.flatnonzero(~weights)[0], side="right")) - 1
    else:
        return
    raise InputError(f"the representations of {names[bad]} hold NaN or infinity; encode again, in float32 if need be")


def _value(key: str, value: object, passage_id: str) -> MetadataValue:
    if isinstance(value, str):
        return _text(value, passage_id, f"metadata {key!r}")
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and _is_finite(value):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [_text(item, passage_id, f"metadata {key!r}") for item in value]
    raise InputError(
        f"passage {passage_id!r} has the metadata {key!r}: {value!r} ({type(value).__name__}); values are strings, "
        "finite numbers, bools or lists of strings"
    )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of floats
        return False


def _text(value: object, whose: Passage | str, what: str) -> str:
    if not isinstance(value, str):
        passage_id = whose if isinstance(whose, str) else whose.passage_id
        raise InputError(f"passage {passage_id!r} has the {what} {value!r}; it must be a string")
    return _LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", value)
