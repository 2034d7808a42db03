"""Prepared texts: token ids and content words of what the encoder sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from diffretriever.conventions import Side
from diffretriever.prompted import PromptedEncoder
from diffretriever.training.salience import ContentPieces

#: Characters per token that a first rough cut leaves, so that a very long text is not tokenised whole.
_CHARACTERS = 16


class PreparedText(NamedTuple):
    """One text, cut to its limit.

    Attributes:
        text: what the encoder sees of it, to the last whole word.
        ids: token ids, no special tokens.
        words: its content words with the ids of their pieces, in reading order; empty where not asked for.
    """

    text: str
    ids: list[int]
    words: ContentPieces


class TextPreparer:
    """Tokenises texts and finds their content words, by the tokeniser and the filter that inference uses.

    Args:
        encoder: the system.
        words: whether content words are wanted.
    """

    def __init__(self, encoder: PromptedEncoder, *, words: bool = True) -> None:
        self._encoder = encoder
        self._wanted = words

    def prepare(self, texts: Sequence[str], side: Side, limit: int) -> list[PreparedText]:
        """Return texts cut to `limit` tokens; words past the cut do not count."""
        texts = [text[: limit * _CHARACTERS] for text in texts]
        ids = self._encoder.tokenise(texts, side)
        shown = [
            text if len(row) <= limit else text[: len(text) * limit // len(row)].rsplit(" ", 1)[0]
            for text, row in zip(texts, ids, strict=True)
        ]
        found = [self._encoder.content.words(text) for text in shown] if self._wanted else [[] for _ in shown]
        pieces = self._encoder.content.pieces({word: None for words in found for word in words})
        return [
            PreparedText(text, row[:limit], [(word, pieces[word]) for word in words])
            for text, row, words in zip(shown, ids, found, strict=True)
        ]
