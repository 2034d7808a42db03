"""Term weights: which vocabulary ids a text may weight, and how logits become weights.

    text    --ContentWords--> content ids: the pieces of the text's own words
    logits  --term_weights--> log(1 + relu(x)), top k per slot, maximum over the slots: one sparse row per text

Sources: docs/method.md, 7, and the stop words and Punkt parameters under
`data/english`, which come with the package.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from diffretriever.errors import InputError
from diffretriever.words import data_lines, lowercase_words

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
EncodeWords = Callable[[list[str]], Sequence[Sequence[int]]]

CACHED_WORDS = 100_000
"""Words whose pieces a `ContentWords` remembers: a few tens of megabytes at most."""

K1, B = 0.9, 0.4
"""Constants of BM25 (Robertson et al. 1994): how soon repetitions stop to count, and how much the length does."""

_PUNCTUATION = frozenset(string.punctuation)
_CLITICS = frozenset({"n't", "'t", "'s", "'m", "'d", "'re", "'ll", "'ve"})


@dataclass(frozen=True)
class TermRule:
    """How the logits of one slot become term weights.

    Attributes:
        top_k: weights kept per slot; among equal weights the lower id wins.
        scale: factor applied before rounding to whole numbers; None keeps fp32 weights.
        rounding: how a scaled weight becomes whole; of no effect without `scale`.
    """

    top_k: int
    scale: int | None
    rounding: Literal["truncate", "round"]

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k must be at least 1, not {self.top_k}")
        if self.scale is not None and self.scale < 1:
            raise InputError(f"scale must be at least 1, or None for weights that are not quantised, not {self.scale}")
        if self.rounding not in ("truncate", "round"):
            raise InputError(f"rounding must be 'truncate' or 'round', not {self.rounding!r}")


PAPER_ZERO_SHOT = TermRule(top_k=128, scale=100, rounding="truncate")
"""The paper's rule for backbones that were not fine-tuned."""

PAPER_FINE_TUNED = TermRule(top_k=256, scale=100, rounding="round")
"""The paper's rule for its fine-tuned checkpoints."""

DEFAULT = TermRule(top_k=256, scale=None, rounding="round")
"""The rule of the default protocol: whole numbers would tie weights that differ."""


class ContentWords:
    """The content filter: the vocabulary ids that belong to a text's own words.

    The text is lowercased and split into words as NLTK's `word_tokenize` does; stop words and single ASCII
    punctuation marks go; each word left is tokenised alone, without a leading space.

    Args:
        encode_words: pieces of each of some words, no special tokens added; a `tokenizers.Tokenizer` gives them as
            `lambda words: [e.ids for e in tokenizer.encode_batch(words, add_special_tokens=False)]`; or see
            `stems.StemPieces`.
        excluded_ids: ids that no text may weight, the mask id at least.
        strict: whether tokens without a letter or digit, single cased letters and clitics ("n't", "'s") go too.
            The paper's filter lets them pass (False).
    """

    def __init__(self, encode_words: EncodeWords, excluded_ids: frozenset[int], strict: bool) -> None:
        self._encode_words = encode_words
        self._excluded_ids = excluded_ids
        self._strict = strict
        self._pieces: dict[str, tuple[int, ...]] = {}

    def words(self, text: str) -> list[str]:
        """Return the content words of a text, lowercased, in order, repetitions kept."""
        tokens = lowercase_words(text)
        dropped = stop_words()
        kept = [t for t in tokens if t not in dropped and t not in _PUNCTUATION]
        return [t for t in kept if _is_word(t)] if self._strict else kept

    def ids(self, text: str) -> IntArray:
        """Return the content ids of a text, [R] ascending and distinct; R = 0 when it has no content word."""
        return self._ids([self.words(text)])[0]

    def rows(self, texts: Sequence[str]) -> IntArray:
        """Return the content ids of several texts, [B, R] padded with -1, at the price of one tokeniser call."""
        found = self._ids([self.words(text) for text in texts])
        rows = np.full((len(texts), max((len(ids) for ids in found), default=0)), -1, dtype=np.int64)
        for row, ids in zip(rows, found, strict=True):
            row[: len(ids)] = ids
        return rows

    def counted_rows(self, texts: Sequence[str], mean_words: float) -> tuple[IntArray, FloatArray]:
        """Return the content ids of several texts, [B, R] padded with -1, and `count_factors` of each, [B, R]."""
        words = [self.words(text) for text in texts]
        pieces = self.pieces({word: None for text in words for word in text})
        found = [count_factors([pieces[word] for word in text], mean_words) for text in words]
        rows = np.full((len(texts), max((len(f) for f in found), default=0)), -1, dtype=np.int64)
        factors = np.ones(rows.shape, dtype=np.float32)
        for row, own, each in zip(rows, factors, found, strict=True):
            row[: len(each)] = sorted(each)
            own[: len(each)] = [each[i] for i in sorted(each)]
        return rows, factors

    def _ids(self, texts: list[list[str]]) -> list[IntArray]:
        pieces = self.pieces({word: None for words in texts for word in words})
        return [np.array(sorted({i for w in set(words) for i in pieces[w]}), dtype=np.int64) for words in texts]

    def pieces(self, words: Iterable[str]) -> Mapping[str, tuple[int, ...]]:
        """Return the ids of each of `words`, those of other remembered words among them.

        A full memory is replaced, not emptied, since another thread may be reading it.
        """
        words = list(words)
        pieces = self._pieces
        new = [w for w in words if w not in pieces]
        if new and len(pieces) + len(new) > CACHED_WORDS:
            pieces = self._pieces = {}
            new = words
        if new:
            for word, ids in zip(new, self._encode_words(new), strict=True):
                pieces[word] = tuple(i for i in ids if i not in self._excluded_ids)
        return pieces


def count_factors(words: Sequence[Sequence[int]], mean_words: float) -> dict[int, float]:
    """Return what a passage's count n of each content id makes of its weight: BM25's n (1 + k1) / (n + K).

    K = k1 (1 - b + b |d| / mean_words), so that counts say less the longer the passage is.

    Args:
        words: the ids of each of its |d| content words, repetitions kept.
        mean_words: content words of the mean passage.
    """
    counts = Counter(i for ids in words for i in ids)
    length = K1 * (1.0 - B + B * len(words) / mean_words)
    return {i: n * (1.0 + K1) / (n + length) for i, n in counts.items()}


def term_weights(
    logits: torch.Tensor, ids: torch.Tensor, keep: torch.Tensor, rule: TermRule, vocabulary_size: int
) -> sp.csr_matrix:
    """Return one sparse row of term weights per text, [B, V] fp32: `strongest_weights` as `term_rows`."""
    weights = strongest_weights(logits, ids, keep, rule)
    return term_rows(weights.cpu().numpy(), ids.cpu().numpy(), vocabulary_size)


def strongest_weights(logits: torch.Tensor, ids: torch.Tensor, keep: torch.Tensor, rule: TermRule) -> torch.Tensor:
    """Return the weight of each content id of each text, [B, R] fp32 on the device of the logits.

    Per slot: log(1 + relu(logit)) in fp32, the `rule.top_k` largest, quantised if the rule says so. Then the maximum
    over the kept slots.

    Args:
        logits: [B, K, R] logits of the content rows of the LM head, any float dtype.
        ids: [B, R] vocabulary id of each row, ascending, padded with -1; the logits of padding are ignored.
        keep: [B, K] True for the slots that count.
        rule: how logits become weights.

    Raises:
        InputError: the shapes do not fit together.
    """
    batch, slots, rows = logits.shape
    if ids.shape != (batch, rows) or keep.shape != (batch, slots):
        raise InputError(
            f"logits {list(logits.shape)} need ids [{batch}, {rows}] and keep [{batch}, {slots}], "
            f"not {list(ids.shape)} and {list(keep.shape)}"
        )
    counted = keep.to(logits.device)[:, :, None] & (ids.to(logits.device) >= 0)[:, None, :]
    weights = torch.log1p(torch.relu(logits.float())).masked_fill(~counted, 0.0)
    return _quantise(_largest(weights, rule.top_k), rule).amax(dim=1)


def term_rows(weights: npt.NDArray[np.float32], ids: IntArray, vocabulary_size: int) -> sp.csr_matrix:
    """Return weights [B, R] of ascending content ids [B, R], padded with -1, as sparse rows [B, V] without zeros.

    Raises:
        InputError: an id is not below `vocabulary_size`.
    """
    if ids.size and ids.max() >= vocabulary_size:
        raise InputError(f"id {ids.max()} is outside the vocabulary of {vocabulary_size}")
    stored = weights > 0
    indptr = np.concatenate([[0], np.cumsum(stored.sum(axis=1))])
    return sp.csr_matrix((weights[stored], ids[stored], indptr), shape=(len(ids), vocabulary_size))


def _largest(weights: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return `weights` [B, K, R] with all but the top_k of each slot set to 0."""
    if weights.shape[-1] <= top_k:
        return weights
    # A stable sort, not topk: which of several equal weights topk returns differs from device to device.
    order = torch.sort(weights, dim=-1, descending=True, stable=True).indices[..., top_k:]
    return weights.scatter(-1, order, 0.0)


def _quantise(weights: torch.Tensor, rule: TermRule) -> torch.Tensor:
    if rule.scale is None:
        return weights
    scaled = weights * rule.scale
    return scaled.trunc() if rule.rounding == "truncate" else scaled.round()


def _is_word(token: str) -> bool:
    """Whether the strict rule keeps a token. A lone letter without case is a word in the scripts that have such."""
    if token in _CLITICS or (len(token) == 1 and token.islower()):
        return False
    return any(c.isalnum() for c in token)


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """Return the 179 English stop words of NLTK."""
    return frozenset(data_lines("stopwords.txt"))
