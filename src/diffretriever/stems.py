"""StemPieces: vocabulary ids of words, the same for all inflections of a word where the vocabulary allows it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from diffretriever.tokenizer import Tokenizer


class StemPieces:
    """Encodes words for a `ContentWords` whose terms are stems.

    All words of one stem (Snowball's English stemmer; Porter 2001) share one vocabulary id: that of the first item of
    the vocabulary, which is the most frequent one, that has this stem and is a whole word. A word whose stem has no
    such item keeps its own pieces.

    Args:
        tokenizer: gives the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_words(self, words: list[str]) -> list[list[int]]:
        """Return the ids of each word alone; words are lower case."""
        ids = self._ids
        found = (ids.get(self._stem(word)) if word.isalpha() else None for word in words)
        pieces = self._tokenizer.encode_words(words)
        return [own if shared is None else [shared] for own, shared in zip(pieces, found, strict=True)]

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id that stands for each stem, found at the first text: it takes a second for 30,000 items."""
        strings = (self._tokenizer.text_of(i) for i in range(len(self._tokenizer)))
        words = list(dict.fromkeys(s for s in strings if len(s) > 1 and s.isalpha() and s == s.lower()))
        pieces = self._tokenizer.encode_words(words)
        alone = [(ids[0], word) for word, ids in zip(words, pieces, strict=True) if len(ids) == 1]
        stems: dict[str, int] = {}
        for term_id, word in sorted(alone):
            stems.setdefault(self._stem(word), term_id)
        return stems

    def _stem(self, word: str) -> str:
        return self._stemmer(word)

    @cached_property
    def _stemmer(self) -> Callable[[str], str]:
        # Imported at the first text: NLTK takes a second to import.
        from nltk.stem.snowball import EnglishStemmer

        stem: Callable[[str], str] = EnglishStemmer().stem
        return stem
