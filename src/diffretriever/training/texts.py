"""Prepared texts: token ids and content words of what the encoder sees, and the slots' targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffretriever.conventions import Side
from diffretriever.terms import ContentWords
from diffretriever.tokenizer import Tokenizer
from diffretriever.training.salience import ContentPieces, TermStatistics, passage_weights, query_weights, salient_words


class PreparedText(NamedTuple):
    """One text, cut to its limit.

    Attributes:
        ids: token ids, no special tokens.
        words: its content words with the ids of their pieces, in reading order.
    """

    ids: list[int]
    words: ContentPieces


class TextPreparer:
    """Tokenises texts and finds their content words, by the filter that inference uses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._content = ContentWords(tokenizer.encode_words, tokenizer.special_ids, strict=True)
        self._pieces: dict[str, tuple[int, ...]] = {}

    def prepare(self, texts: Sequence[str], limit: int) -> list[PreparedText]:
        """Return texts cut to `limit` tokens; words past the cut do not count."""
        # A first rough cut, so that a very long text is not tokenised whole.
        texts = [text[: limit * 16] for text in texts]
        ids = self._tokenizer.encode(texts, parse_special_tokens=False)
        shown = [
            text if len(row) <= limit else text[: len(text) * limit // len(row)].rsplit(" ", 1)[0]
            for text, row in zip(texts, ids, strict=True)
        ]
        found = [self._content.words(text) for text in shown]
        self._learn({word for words in found for word in words})
        return [
            PreparedText(row[:limit], [(word, self._pieces[word]) for word in words])
            for row, words in zip(ids, found, strict=True)
        ]

    def _learn(self, words: set[str]) -> None:
        new = sorted(words - self._pieces.keys())
        if new:
            excluded = self._tokenizer.special_ids
            for word, ids in zip(new, self._tokenizer.encode_words(new), strict=True):
                self._pieces[word] = tuple(i for i in ids if i not in excluded)


@dataclass(frozen=True)
class TermTargets:
    """What the vocabulary head should say of a batch of texts.

    Attributes:
        own: [N, U] true where union id u is one of the text's content ids.
        weights: [N, U] lexical weight of each own id, 0 elsewhere.
        words: [N, K] the vocabulary id each slot should say, -100 for none.
    """

    own: Tensor
    weights: Tensor
    words: Tensor


def content_union(texts: Sequence[PreparedText]) -> Tensor:
    """Return the content ids of all texts together, [U] ascending."""
    return torch.tensor(sorted({i for text in texts for _, ids in text.words for i in ids}), dtype=torch.long)


def term_targets(
    texts: Sequence[PreparedText], side: Side, union: Tensor, statistics: TermStatistics, slots: int, scale: float
) -> TermTargets:
    """Return the targets of the texts of one side over the ids `union` [U]."""
    weigh = query_weights if side == "query" else passage_weights
    column = {int(i): c for c, i in enumerate(union.tolist())}
    own = torch.zeros(len(texts), len(column), dtype=torch.bool)
    weights = torch.zeros(len(texts), len(column))
    words = torch.full((len(texts), slots), -100)
    for row, text in enumerate(texts):
        for i, weight in weigh(text.words, statistics, scale=scale).items():
            own[row, column[i]] = True
            weights[row, column[i]] = weight
        chosen = salient_words(text.words, statistics, slots)
        words[row, : len(chosen)] = torch.tensor(chosen, dtype=torch.long)
    return TermTargets(own, weights, words)
