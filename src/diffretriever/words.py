"""Words: a text split as NLTK's `word_tokenize` does it, without the work that cannot change anything.

NLTK's word tokeniser is a chain of some thirty replacements over every sentence, most of which look for a character
that the sentence does not have. Here each is tried only where such a character is. What comes out is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple, Protocol, TypeVar

#: What a lowercased text must hold for a pattern of NLTK's to match: one of these strings. Patterns that are not here,
#: as another release may have them, are always tried. The letters i, k and s, which match letters of other scripts when
#: case is ignored, are in none of the strings.
_NEEDED: dict[str, tuple[str, ...]] = {
    "([«“‘„]|[`]+)": ("«", "“", "‘", "„", "`"),
    r"^\"": ('"',),
    "(``)": ("``",),
    r"([ \(\[{<])(\"|\'{2})": ('"', "''"),
    r"(?i)(?<!\w)(\')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)": ("'",),
    "([»”’])": ("»", "”", "’"),
    "''": ("''",),
    '"': ('"',),
    "([^' ])('[sS]|'[mM]|'[dD]|') ": ("'",),
    "([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ": ("'",),
    r"([:,])([^\d])": (":", ","),
    "([:,])$": (":", ","),
    r"\.{2,}": ("..",),
    "[;@#$%&]": (";", "@", "#", "$", "%", "&"),
    r"[\u2012-\u2015]": ("\u2012", "\u2013", "\u2014", "\u2015"),
    "[?!]": ("?", "!"),
    "([^'])' ": ("' ",),
    "[*]": ("*",),
    r"[\]\[\(\)\{\}\<\>]": ("(", ")", "[", "]", "<", ">", "{", "}"),
    "--": ("--",),
    r"(?i)\b(can)(?#X)(not)\b": ("nno",),
    r"(?i)\b(d)(?#X)('ye)\b": ("'ye",),
    r"(?i)\b(gim)(?#X)(me)\b": ("mme",),
    r"(?i)\b(gon)(?#X)(na)\b": ("onna",),
    r"(?i)\b(got)(?#X)(ta)\b": ("otta",),
    r"(?i)\b(lem)(?#X)(me)\b": ("mme",),
    r"(?i)\b(more)(?#X)('n)\b": ("'n",),
    r"(?i)\b(wan)(?#X)(na)(?=\s)": ("anna",),
    r"(?i) ('t)(?#X)(is)\b": (" 't",),
    r"(?i) ('t)(?#X)(was)\b": (" 't",),
}


class _Pattern(Protocol):
    def sub(self, repl: str, string: str) -> str: ...


P = TypeVar("P")


class _Guarded(NamedTuple):
    """A pattern that is tried only on texts that hold one of some strings, without which it cannot match."""

    pattern: _Pattern
    needed: tuple[str, ...]

    def sub(self, repl: str, string: str) -> str:
        for text in self.needed:
            if text in string:
                return self.pattern.sub(repl, string)
        return string


def lowercase_words(text: str) -> list[str]:
    """Return the words and marks of a text, lowercased, in order, as `nltk.word_tokenize(text.lower())` splits them."""
    split_text, split_sentence = _splitters()
    return [word for part in split_text(text.lower()) for word in split_sentence(part)]


def data_lines(name: str) -> list[str]:
    """Return the lines of a bundled file about English that are not empty."""
    file = files("diffretriever") / "data" / "english" / name
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line]


@lru_cache(maxsize=1)
def _splitters() -> tuple[Callable[[str], Iterable[str]], Callable[[str], list[str]]]:
    """Return NLTK's Punkt splitter with the bundled parameters, and its word tokeniser with guarded patterns."""
    # Imported at the first text: NLTK takes a second to import, and many programs never need a sparse vector.
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktLanguageVars, PunktParameters, PunktSentenceTokenizer

    class Language(PunktLanguageVars):  # type: ignore[misc]
        re_boundary_realignment = _unlimited(PunktLanguageVars.re_boundary_realignment)

        def period_context_re(self) -> object:
            return _unlimited(super().period_context_re())

    parameters = PunktParameters()
    parameters.abbrev_types = set(data_lines("abbrev_types.txt"))
    parameters.sent_starters = set(data_lines("sent_starters.txt"))
    parameters.collocations = {tuple(line.split("\t")) for line in data_lines("collocations.tab")}
    for line in data_lines("ortho_context.tab"):
        word, context = line.split("\t")
        parameters.ortho_context[word] = int(context)
    words = NLTKWordTokenizer()
    for name in ("STARTING_QUOTES", "PUNCTUATION", "ENDING_QUOTES"):
        setattr(words, name, [(_guarded(pattern), replacement) for pattern, replacement in getattr(words, name)])
    for name in ("PARENS_BRACKETS", "DOUBLE_DASHES"):
        pattern, replacement = getattr(words, name)
        setattr(words, name, (_guarded(pattern), replacement))
    for name in ("CONTRACTIONS2", "CONTRACTIONS3"):
        setattr(words, name, [_guarded(pattern) for pattern in getattr(words, name)])
    return PunktSentenceTokenizer(parameters, lang_vars=Language()).tokenize, words.tokenize


def _unlimited(pattern: P) -> P:
    """Return a pattern of NLTK's without the time limit that newer releases put on every match.

    The limit counts the processor time of all threads, and in the search for ends of sentences that of the whole text:
    a long text would end in a TimeoutError beside a forward pass on many cores. It is for patterns of strangers, and
    these are NLTK's own.
    """
    try:
        from nltk import redos
    except ImportError:  # a release without limits
        return pattern
    if not isinstance(pattern, redos.TimedPattern):  # others are of another engine, whose word borders differ
        return pattern
    unlimited: P = redos.compile(pattern, timeout=None)
    return unlimited


def _guarded(pattern: _Pattern) -> _Pattern:
    pattern = _unlimited(pattern)
    needed = _NEEDED.get(str(getattr(pattern, "pattern", "")))
    return pattern if needed is None else _Guarded(pattern, needed)
