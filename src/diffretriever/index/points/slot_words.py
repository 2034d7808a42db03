"""The slot words of a passage as JSON, the form in which every store keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from diffretriever.representations import Representations, SlotWord, SlotWords

#: Significant digits kept of a probability.
_DIGITS = 5


def words_to_json(representations: Representations, i: int) -> str:
    """Return the words of text i as `[[[id, word, probability], ...], ...]`, one list per slot; "[]" without."""
    words = representations.words
    if words is None:
        return "[]"
    span = slice(int(representations.offsets[i]), int(representations.offsets[i + 1]))
    rows = zip(words.ids[span].tolist(), words.probabilities[span].tolist(), strict=True)
    slots = [
        [[t, words.strings[t], float(f"{p:.{_DIGITS}g}")] for t, p in zip(ids, probabilities, strict=True)]
        for ids, probabilities in rows
    ]
    return json.dumps(slots, separators=(",", ":"))


def words_from_json(text: str) -> SlotWords | None:
    """Return what `words_to_json` wrote as `SlotWords` of that one text; None when there were none."""
    slots = json.loads(text)
    if not slots:
        return None
    return SlotWords(
        ids=np.array([[t for t, _, _ in slot] for slot in slots], dtype=np.int32),
        probabilities=np.array([[p for _, _, p in slot] for slot in slots], dtype=np.float32),
        strings={t: word for slot in slots for t, word, _ in slot},
    )


def word_rows(text: str) -> tuple[tuple[SlotWord, ...], ...]:
    """Return what `words_to_json` wrote as one row of words per slot."""
    slots: Sequence[Sequence[tuple[int, str, float]]] = json.loads(text)
    return tuple(tuple(SlotWord(word, p) for _, word, p in slot) for slot in slots)
