"""Records: the fields of one row turned into a `Passage`, whatever names they carry."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import TypeGuard

from diffretriever.corpus.passage import MetadataValue, Passage
from diffretriever.corpus.problems import shorten

ID_FIELDS = ("_id", "id", "passage_id", "docid")
TEXT_FIELDS = ("text", "contents", "body")
TITLE_FIELD = "title"
METADATA_FIELD = "metadata"
_INT64 = 1 << 63


class RecordError(Exception):
    """A record that makes no passage; the message says why, the caller knows where."""


def passage_from(fields: Mapping[str, object]) -> Passage:
    """Return the passage of one record.

    The id comes from `_id`, `id`, `passage_id` or `docid` (text or a whole number), the body from `text`, `contents`
    or `body` (may be empty), the title from `title` (may be missing). Every other field, and every field of an object
    named `metadata`, becomes metadata: see `metadata_value`.

    Raises:
        RecordError: a field is missing, given twice, or of a type that cannot be used.
    """
    id_field = first_field(fields, ID_FIELDS, "an id")
    text_field = first_field(fields, TEXT_FIELDS, "a text")
    title = fields.get(TITLE_FIELD)
    used = {id_field, text_field, TITLE_FIELD}
    return Passage(
        passage_id=identifier(id_field, fields[id_field]),
        text=text_value(text_field, fields[text_field]),
        title="" if title is None else text_value(TITLE_FIELD, title),
        metadata=_metadata({name: value for name, value in fields.items() if name not in used}),
    )


def first_field(fields: Mapping[str, object], names: tuple[str, ...], what: str) -> str:
    """Return the first of `names` that the record has.

    Raises:
        RecordError: it has none of them.
    """
    for name in names:
        if name in fields:
            return name
    raise RecordError(f"lacks {what}: has {shorten(sorted(fields))}; name the field one of {', '.join(names)}")


def identifier(name: str, value: object) -> str:
    """Return an id as text: a non-empty string as it is, a whole number in decimal."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise RecordError(f"{name} is {shorten(value)}; an id must be a non-empty text or a whole number")
    return well_formed(name, value)


def text_value(name: str, value: object) -> str:
    """Return a text field; it may be empty but not null or of another type."""
    if not isinstance(value, str):
        raise RecordError(f"{name} is {shorten(value)}; it must be text (an empty text is allowed)")
    return well_formed(name, value)


def well_formed(name: str, value: str) -> str:
    """Return `value` if it can be written as UTF-8.

    Half a surrogate pair comes from a broken escape in JSON, or (U+DC80 to U+DCFF) stands for a byte that is no UTF-8.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        what = f"byte 0x{code - 0xDC00:02x}, no UTF-8" if 0xDC80 <= code <= 0xDCFF else f"a lone surrogate U+{code:04X}"
        raise RecordError(f"{name} holds {what}, at character {error.start + 1}; convert the file to UTF-8") from error
    return value


def _metadata(fields: Mapping[str, object]) -> dict[str, MetadataValue]:
    nested = fields.get(METADATA_FIELD)
    merged: dict[str, object] = dict(fields)
    if isinstance(nested, Mapping):
        del merged[METADATA_FIELD]
        if twice := sorted(merged.keys() & nested.keys()):
            raise RecordError(f"gives {twice[0]!r} twice, beside and inside 'metadata'; keep one")
        merged |= nested
    # null says that there is no value, so the field is left out rather than stored as a text "None".
    return {
        well_formed("a field name", str(name)): metadata_value(name, value)
        for name, value in merged.items()
        if value is not None
    }


def metadata_value(name: str, value: object) -> MetadataValue:
    """Return a metadata value in one of the types that filters know.

    Text, whole numbers of 64 bits, finite numbers and booleans stay; dates become ISO 8601 text, decimals numbers; a
    list of simple values becomes a list of texts; any other list or object becomes its JSON text.
    """
    if isinstance(value, str):
        return well_formed(name, value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise RecordError(f"{name} is {shorten(value)}, beyond 64 bits; write it as text")
        return value
    if isinstance(value, (float, decimal.Decimal)):
        if not math.isfinite(value):
            raise RecordError(f"{name} is {value}; metadata numbers must be finite, use null for no value")
        return float(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if _simple_list(value):
        return [well_formed(name, v if isinstance(v, str) else json.dumps(v)) for v in value]
    try:
        return well_formed(name, json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecordError(f"{name} is {shorten(value)}, which metadata cannot hold; remove or convert it") from error


def _simple_list(value: object) -> TypeGuard[list[str | int | float | bool]]:
    return isinstance(value, list) and all(isinstance(v, (str, int, float, bool)) for v in value)
