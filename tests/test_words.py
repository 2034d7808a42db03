from __future__ import annotations

import gzip
import json
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer

from diffretriever import words
from diffretriever.words import lowercase_words

HARD = "'\"`«“‘„»”’.,:;@#$%&\u2013\u2014?!*()[]{}<>- \t\nsStTdDmMaAnNoO0ıſK\u0130…"
PIECES = ["cannot", "gimme", "gonna", "gotta", "lemme", "more'n", "wanna ", "d'ye", " 'tis", "'twas", "don't", "we'll"]
TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(alphabet=HARD, max_size=40),
    st.lists(
        st.one_of(st.sampled_from([*PIECES, "..", "--", "''", "``", ". ", "e.g."]), st.text(HARD, max_size=4))
    ).map("".join),
)


def plain(text: str) -> list[str]:
    """NLTK's own chain, every pattern tried."""
    split_text, _ = words._splitters()
    return [w for part in split_text(text.lower()) for w in NLTKWordTokenizer().tokenize(part)]


@given(TEXTS)
@settings(max_examples=400)
def test_words_are_those_of_nltk(text: str) -> None:
    assert lowercase_words(text) == plain(text)


def test_words_of_real_text_are_those_of_nltk() -> None:
    with gzip.open(
        str(files("diffretriever") / "data" / "scifact" / "corpus.jsonl.gz"), "rt", encoding="utf-8"
    ) as file:
        for _, line in zip(range(150), file, strict=False):
            text = json.loads(line)["text"]
            assert lowercase_words(text) == plain(text)


def test_every_pattern_but_few_is_guarded() -> None:
    """So that a release of NLTK with other patterns is noticed, which would be right and slower."""
    _, tokenize = words._splitters()
    nltk = tokenize.__self__  # type: ignore[attr-defined]
    patterns = [p for p, _ in (*nltk.STARTING_QUOTES, *nltk.PUNCTUATION, *nltk.ENDING_QUOTES)]
    patterns += [*nltk.CONTRACTIONS2, *nltk.CONTRACTIONS3, nltk.PARENS_BRACKETS[0], nltk.DOUBLE_DASHES[0]]
    plain_ones = [p.pattern for p in patterns if not isinstance(p, words._Guarded)]
    assert len(plain_ones) <= 3, plain_ones


def test_a_long_text_is_split_without_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK's limit of seconds would end a text of megabytes, sooner where other threads compute; here it is tiny."""
    redos = pytest.importorskip("nltk.redos")
    monkeypatch.setattr(redos, "DEFAULT_TIMEOUT", 0.02)
    text = "The tilt of the axis causes seasons. Is it so? He said: it is. " * 2000
    with pytest.raises(TimeoutError):
        redos.compile(r"[.?](?=\s+\S+)").sub("", text * 20)
    assert len(lowercase_words(text)) == 18 * 2000
    assert len(lowercase_words(text.replace(".", ""))) == 16 * 2000
