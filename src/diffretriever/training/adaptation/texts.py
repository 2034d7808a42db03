"""Texts: plain texts and the retrieval prompt, corrupted; every example a function of seed and number."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffretriever.backbones.backbone import Backbone
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.conventions import Side
from diffretriever.corpus import Problem
from diffretriever.corpus.lines import numbered_lines
from diffretriever.corpus.records import TEXT_FIELDS
from diffretriever.corpus.rows import Row, read_rows
from diffretriever.errors import CorpusError, InputError
from diffretriever.retriever import DiffRetriever
from diffretriever.tokenizer import Tokenizer
from diffretriever.training.adaptation.corruption import Corrupted, corrupt, mask_rate
from diffretriever.training.adaptation.settings import AdaptationSettings
from diffretriever.training.salience import TermStatistics, salient_words
from diffretriever.training.texts import TextPreparer

log = logging.getLogger("diffretriever.training")

_FIELDS = ("text", "positive", *TEXT_FIELDS)
#: Characters per token, generously; of a longer text a window is read, so that no novel is tokenised whole.
_CHARACTERS = 12
#: Texts that document frequencies are counted on, share of prompts of a query, and longest query text in tokens.
_STATISTICS, _QUERIES, _QUERY_TOKENS = 2000, 0.25, 24


def read_texts(sources: Iterable[str | Path]) -> list[str]:
    """Return the texts of some files, empty ones left out.

    Args:
        sources: Parquet or JSONL with a field `text`, `positive`, `contents` or `body`; .txt with a text on every line.

    Raises:
        CorpusError: a row cannot be used, or there is no text at all; names file and line.
    """
    texts: list[str] = []
    for source in sources:
        found = _lines(Path(source)) if str(source).endswith(".txt") else _fields(Path(source))
        texts += [text for text in found if text.strip()]
    if not texts:
        raise CorpusError(f"{', '.join(map(str, sources))}: no text in there")
    return texts


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; check the path")
    for line in numbered_lines(path):
        if isinstance(line, Problem):
            raise CorpusError(str(line))
        yield line.raw.decode("utf-8", "replace").strip()


def _fields(path: Path) -> Iterator[str]:
    for row in read_rows(path):
        if isinstance(row, Problem):
            raise CorpusError(str(row))
        yield _text(row)


def _text(row: Row) -> str:
    value = next((row.fields[name] for name in _FIELDS if name in row.fields), None)
    if not isinstance(value, str):
        problem = Problem(row.source, row.line, f"no text in any of the fields {', '.join(dict.fromkeys(_FIELDS))}")
        raise CorpusError(str(problem))
    return value


@dataclass(frozen=True)
class Split:
    """Texts to train on, and those kept from training."""

    train: Sequence[str]
    held_out: Sequence[str]


def split_texts(texts: Sequence[str], held_out: int, seed: int) -> Split:
    """Return a seeded split of distinct texts.

    Raises:
        InputError: nothing would be left to train on.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) <= held_out:
        raise InputError(f"{len(distinct)} distinct texts, of which {held_out} should be held out; give more texts")
    order = np.random.default_rng([seed, 1]).permutation(len(distinct)).tolist()
    return Split([distinct[i] for i in order[held_out:]], [distinct[i] for i in order[:held_out]])


class TextWindows:
    """Token ids of a text, or of a window of a long one, between what the tokeniser puts around a text.

    Args:
        tokenizer: the model's.
        length: longest sequence, those around the text included.
        positions: how many the model has, which cut longer sequences; None for any number.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, positions: int | None = None) -> None:
        if positions is not None and length > positions:
            log.warning(
                "a text of %d tokens was asked for and the model has %d positions: longer texts are cut at these",
                length, positions,
            )  # fmt: skip
            length = positions
        self._tokenizer = tokenizer
        self.before, self.after = tokenizer.around()
        self.room = length - len(self.before) - len(self.after)
        if self.room < 1:
            raise InputError(f"length {length} leaves no room for text")

    def window(self, text: str, rng: np.random.Generator, tokens: int | None = None) -> str:
        """Return a piece of the text that holds about so many tokens at least, the whole of a short text."""
        size = (tokens or self.room) * _CHARACTERS
        if len(text) <= size:
            return text
        start = int(rng.integers(0, len(text) - size + 1))
        piece = text[start : start + size]
        return piece if start == 0 else piece.partition(" ")[2] or piece

    def ids(self, text: str) -> tuple[list[int], list[int]]:
        """Return the sequence of a text, and the places in it that may be masked."""
        own = self._tokenizer.encode([text], parse_special_tokens=False)[0][: self.room]
        first = len(self.before)
        return [*self.before, *own, *self.after], list(range(first, first + len(own)))


class PromptSlots:
    """The retrieval prompt with the salient words of a text in its masked positions."""

    def __init__(self, backbone: Backbone, settings: AdaptationSettings, texts: Sequence[str]) -> None:
        encoder = DiffRetriever(backbone, retriever_settings(backbone, settings))
        self._preparer = TextPreparer(encoder)
        self._frames = encoder.frames
        sample = texts[:: max(1, len(texts) // _STATISTICS)]
        prepared = self._preparer.prepare(sample, "passage", settings.length)
        self._statistics = TermStatistics.count(text.words for text in prepared)

    def sequence(self, text: str, side: Side) -> tuple[list[int], list[int]]:
        """Return the sequence whose first slots say the text's salient words, and the places of those slots.

        Slots for which the text has no word left stay masked and are not predicted.
        """
        frame = self._frames[side]
        limit = min(frame.text_room, _QUERY_TOKENS) if side == "query" else frame.text_room
        prepared = self._preparer.prepare([text], side, limit)[0]
        words = salient_words(prepared.words, self._statistics, frame.slots)
        sequence = frame.wrap(prepared.ids)
        ids, first = sequence.ids, sequence.first_slot
        filled = [*ids[:first], *words, *ids[first + len(words) :]]
        return filled, list(range(first, first + len(words)))


def retriever_settings(backbone: Backbone, settings: AdaptationSettings) -> RetrieverSettings:
    """Return what the adapted checkpoint records: it says its words where it predicts them, untuned for retrieval."""
    length = max(settings.length, 128)
    most = backbone.position_count or length + settings.passage_slots + 64
    return RetrieverSettings(
        prompt=settings.prompt,
        query_slots=settings.query_slots,
        passage_slots=settings.passage_slots,
        max_query_length=min(length, most),
        max_passage_length=min(length + settings.passage_slots + 64, most),
        readout="aligned" if backbone.spec.shift else "slot",
    )


class AdaptationExamples(Dataset[Corrupted]):
    """The corrupted texts of a run, in the order of its steps.

    Args:
        texts: texts to train on.
        windows: plain texts as sequences.
        slots: the prompt; may be None where its share is 0.
        settings: shares, rates and seed.
        mask_id: id of the mask token.
        size: number of examples.
        shift: 1 where raw position i predicts token i + 1, so that a text's first token is never predicted.
    """

    def __init__(
        self,
        texts: Sequence[str],
        windows: TextWindows,
        slots: PromptSlots | None,
        settings: AdaptationSettings,
        mask_id: int,
        size: int,
        shift: int,
    ) -> None:
        self._texts = texts
        self._windows = windows
        self._slots = slots
        self._settings = settings
        self._mask_id = mask_id
        self._size = size
        self._shift = shift
        self._start = float(np.random.default_rng([settings.seed, 2]).random())
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: int) -> Corrupted:
        """Return the number-th example of the run, whatever was asked for before."""
        settings = self._settings
        rng = np.random.default_rng([settings.seed, 3, number])
        text = self._text(number)
        rate = mask_rate(number, self._start, settings.least_rate)
        if self._slots is not None and rng.random() < settings.prompt_share:
            side: Side = "query" if rng.random() < _QUERIES else "passage"
            ids, maskable = self._slots.sequence(self._windows.window(text, rng), side)
            # All slots are masked in half of the cases, as in retrieval.
            rate = 1.0 if rng.random() < 0.5 else rate
        else:
            ids, maskable = self._windows.ids(self._windows.window(text, rng))
        return corrupt(ids, [place for place in maskable if place >= self._shift], rate, self._mask_id, rng)

    def _text(self, number: int) -> str:
        epoch, place = divmod(number, len(self._texts))
        if self._order[0] != epoch:
            rng = np.random.default_rng([self._settings.seed, 4, epoch])
            self._order = epoch, rng.permutation(len(self._texts)).tolist()
        return self._texts[self._order[1][place]]


def collate_corrupted(examples: Sequence[Corrupted], pad_id: int) -> dict[str, Tensor]:
    """Return a batch of B texts of which M tokens are masked.

    Args:
        examples: the texts.
        pad_id: fills the rows up to the longest, L.

    Returns:
        `ids` [B, L] and `mask` [B, L], True where a token is real; `rows`, `positions`, `targets` and `weights` [M] of
        the masked tokens; `tokens` [], how many could have been masked.
    """
    longest = max(len(example.ids) for example in examples)
    counts = torch.tensor([len(example.positions) for example in examples])
    return {
        "ids": torch.tensor([[*e.ids, *([pad_id] * (longest - len(e.ids)))] for e in examples]),
        "mask": torch.arange(longest)[None] < torch.tensor([len(e.ids) for e in examples])[:, None],
        "rows": torch.repeat_interleave(torch.arange(len(examples)), counts),
        "positions": torch.tensor([p for e in examples for p in e.positions], dtype=torch.long),
        "targets": torch.tensor([t for e in examples for t in e.targets], dtype=torch.long),
        "weights": torch.repeat_interleave(torch.tensor([e.weight for e in examples]), counts),
        "tokens": torch.tensor(sum(e.tokens for e in examples)),
    }
