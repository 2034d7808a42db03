"""Salience: the words of a text that its slots should say, and the weight of its terms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffretriever.terms import count_factors

ContentPieces = Sequence[tuple[str, tuple[int, ...]]]
"""The content words of a text in reading order, each with the ids of its pieces."""


@dataclass(frozen=True)
class TermStatistics:
    """How many texts of a sample hold each vocabulary id among their content words.

    Attributes:
        texts: size of the sample.
        frequency: id -> number of texts.
        mean_length: content words per text.
    """

    texts: int
    frequency: Mapping[int, int]
    mean_length: float

    @staticmethod
    def count(sample: Iterable[ContentPieces]) -> TermStatistics:
        """Return the statistics of a sample of texts."""
        frequency: Counter[int] = Counter()
        texts = length = 0
        for words in sample:
            texts += 1
            length += len(words)
            frequency.update({i for _, ids in words for i in ids})
        return TermStatistics(texts, dict(frequency), max(1.0, length / max(1, texts)))

    def idf(self, term_id: int) -> float:
        """Return log(1 + (N - f + .5) / (f + .5)), the inverse document frequency of BM25 (Robertson, Sparck Jones)."""
        f = self.frequency.get(term_id, 0)
        return math.log(1.0 + (self.texts - f + 0.5) / (f + 0.5))


def salient_words(words: ContentPieces, statistics: TermStatistics, slots: int) -> list[int]:
    """Return up to `slots` vocabulary ids, the text's words by falling TF-IDF.

    Only words that are one vocabulary item can be said by one slot. Of words that share their first five letters
    (plurals, inflections) the best stands for all, so that no two slots say nearly the same.
    """
    counts = Counter(ids[0] for _, ids in words if len(ids) == 1)
    strings = {ids[0]: word for word, ids in words if len(ids) == 1}
    ranked = sorted(counts, key=lambda i: (-(1.0 + math.log(counts[i])) * statistics.idf(i), i))
    chosen: list[int] = []
    stems: set[str] = set()
    for i in ranked:
        stem = strings[i][:5]
        if not is_whole_word(strings[i]) or stem in stems:
            continue
        stems.add(stem)
        chosen.append(i)
        if len(chosen) == slots:
            break
    return chosen


def part_words(words: ContentPieces, statistics: TermStatistics, slots: int) -> list[int | None]:
    """Return for each of `slots` equal parts of a text's content words the vocabulary id of its most salient word.

    A part may repeat no word of an earlier one, nor one that shares its first five letters; None for a part without
    a word of its own. A text of fewer words than parts has parts of one word each that follow each other.
    """
    first: dict[str, int] = {}
    for place, (word, _) in enumerate(words):
        first.setdefault(word, place)
    ranks = {i: rank for rank, i in enumerate(salient_words(words, statistics, len(words)))}
    # The stem's best word stands for it; it belongs to the part where it is met first.
    places = {ids[0]: first[word] for word, ids in words if len(ids) == 1 and ids[0] in ranks}
    chosen: list[int | None] = [None] * slots
    for i in sorted(places, key=lambda i: ranks[i]):
        part = places[i] * slots // len(words)
        if chosen[part] is None:
            chosen[part] = i
    return chosen


def is_whole_word(item: str) -> bool:
    """Return whether a vocabulary item, as `Tokenizer.text_of` writes it, is a word, not a piece, sign or number."""
    return len(item) >= 2 and item[0].isalnum() and not item.isdigit()


def log_prior(targets: Iterable[Sequence[int]], vocabulary_size: int) -> list[float]:
    """Return per vocabulary id the log of how often it is a slot's word, every id counted once more than it is."""
    counts: Counter[int] = Counter()
    for ids in targets:
        counts.update(ids)
    total = sum(counts.values()) + vocabulary_size
    return [math.log((counts[i] + 1) / total) for i in range(vocabulary_size)]


def term_logits(statistics: TermStatistics, vocabulary_size: int, *, scale: float) -> list[float]:
    """Return per vocabulary id the logit whose term weight log(1 + logit) is scale * sqrt(idf), see `query_weights`."""
    return [math.expm1(scale * math.sqrt(statistics.idf(i))) for i in range(vocabulary_size)]


def query_weights(words: ContentPieces, statistics: TermStatistics, *, scale: float) -> dict[int, float]:
    """Return scale * sqrt(idf) per content id of a query; see `passage_weights`."""
    return {i: scale * math.sqrt(statistics.idf(i)) for i in {i for _, ids in words for i in ids}}


def passage_weights(words: ContentPieces, statistics: TermStatistics, *, scale: float) -> dict[int, float]:
    """Return scale * sqrt(idf) * BM25's factor for counts (`terms.count_factors`) per content id of a passage.

    The product of the two sides' weights is then scale^2 times the BM25 weight.
    """
    factors = count_factors([ids for _, ids in words], statistics.mean_length)
    return {i: scale * math.sqrt(statistics.idf(i)) * factor for i, factor in factors.items()}
