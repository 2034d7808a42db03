"""TextEncoder: the loop that every system shares: texts in, batches through a backbone, representations out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.conventions import Protocol, Side
from diffretriever.corpus import Passage
from diffretriever.encoder import PassageLike
from diffretriever.errors import InputError
from diffretriever.progress import progress_bar
from diffretriever.representations import Provenance, Representations, SlotWords
from diffretriever.sequences import Batch, Frame, batches_by_length, collate
from diffretriever.terms import ContentWords, TermRule, term_weights

# Texts tokenised and sorted by length at once: bounds what is in memory beside the results.
_LOOK_AHEAD = 8192


class Reading(NamedTuple):
    """What a system reads from one forward pass over B sequences.

    Attributes:
        hidden: [B, K, D] hidden states that become the dense vectors, and logits where the system is sparse too.
        keep: [B, K] True for the vectors that count.
        word_ids: [B, K, n] the most probable vocabulary ids per vector, best first; None when not asked for.
        word_probabilities: [B, K, n] their probabilities.
    """

    hidden: torch.Tensor
    keep: torch.Tensor
    word_ids: torch.Tensor | None = None
    word_probabilities: torch.Tensor | None = None


@dataclass(frozen=True)
class _Part:
    """Encoded texts of one batch and where they stood in the input."""

    rows: list[int]
    representations: Representations


class TextEncoder(ABC):
    """An `Encoder` over a backbone: a system is the frames around its texts and a way to read the forward pass.

    Args:
        backbone: the language model.
        protocol: the conventions.
        frames: what surrounds the texts of each side.
        term_rule: how logits become term weights; None for a system without sparse representations.
        batch_tokens: tokens per forward pass, padding included; 4,096 on a CPU and 32,768 elsewhere by default.
    """

    def __init__(
        self,
        backbone: Backbone,
        protocol: Protocol,
        frames: Mapping[Side, Frame],
        term_rule: TermRule | None,
        batch_tokens: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.protocol = protocol
        self.frames = dict(frames)
        self.term_rule = term_rule
        self.batch_tokens = batch_tokens or (4096 if backbone.device.type == "cpu" else 32768)
        excluded = frozenset({backbone.special.mask})
        if protocol.strict_content:
            excluded |= backbone.tokenizer.special_ids
        self.content = ContentWords(backbone.tokenizer.encode_words, excluded, protocol.strict_content)

    @property
    @abstractmethod
    def provenance(self) -> Provenance:
        """Everything that must agree between two encodings for their scores to mean something."""

    @abstractmethod
    def read(self, batch: Batch, side: Side, words: int) -> Reading:
        """Return what the system reads from the forward pass of a batch on the backbone's device.

        Args:
            batch: framed texts of one side.
            side: which side.
            words: how many predicted words to return per vector.
        """

    def tokenise(self, texts: Sequence[str], side: Side) -> list[list[int]]:
        """Return the token ids of texts of one side, to be framed."""
        return self.backbone.tokenizer.encode(texts, parse_special_tokens=self.protocol.parse_special_tokens)

    @property
    def dim(self) -> int:
        """Width D of the dense vectors."""
        return self.backbone.hidden_size

    @property
    def vocabulary_size(self) -> int:
        """Number V of columns of the sparse representations; 0 for a system without them."""
        return 0 if self.term_rule is None else self.backbone.vocabulary_size

    def term(self, term_id: int) -> str:
        """Return the readable text of a vocabulary id."""
        return self.backbone.tokenizer.text_of(term_id)

    def encode_queries(
        self, queries: str | Sequence[str], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N queries, row i for query i.

        Args:
            queries: texts; an empty one is represented by the prompt around it.
            words: how many predicted words to keep per slot.
            progress: whether to show a progress bar on a terminal.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        return self._encode(_checked(texts), "query", words, progress)

    def encode_passages(
        self, passages: str | Sequence[PassageLike], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N passages, row i for passage i.

        Args:
            passages: texts, `Passage` objects, or mappings with "text" and perhaps "title". A title is written
                before its text as "title. text".
            words: how many predicted words to keep per slot.
            progress: whether to show a progress bar on a terminal.
        """
        given = [passages] if isinstance(passages, str) else list(passages)
        return self._encode(_checked([_passage_text(p) for p in given]), "passage", words, progress)

    def _encode(self, texts: list[str], side: Side, words: int, progress: bool) -> Representations:
        parts: list[_Part] = []
        label = "queries" if side == "query" else "passages"
        with progress_bar(f"encoding {label}", len(texts), enabled=progress) as advance:
            for start in range(0, len(texts), _LOOK_AHEAD):
                for part in self._encode_window(texts[start : start + _LOOK_AHEAD], side, words):
                    parts.append(replace(part, rows=[start + r for r in part.rows]))
                    advance(len(part.rows))
        if not parts:
            return self._empty(words)
        order = np.argsort(np.concatenate([p.rows for p in parts]), kind="stable")
        return Representations.concatenate([p.representations for p in parts]).select(order)

    def _encode_window(self, texts: list[str], side: Side, words: int) -> Iterator[_Part]:
        frame = self.frames[side]
        sequences = [frame.wrap(ids) for ids in self.tokenise(texts, side)]
        lengths = [len(s.ids) for s in sequences]
        for rows in batches_by_length(lengths, self.batch_tokens, padded=not self.backbone.packs):
            batch = collate([sequences[r] for r in rows], frame.slots, self.backbone.special.pad)
            yield _Part(rows, self._forward(batch.to(self.backbone.device), [texts[r] for r in rows], side, words))

    @torch.inference_mode()
    def _forward(self, batch: Batch, texts: list[str], side: Side, words: int) -> Representations:
        reading = self.read(batch, side, words)
        keep = reading.keep
        unit = torch.nn.functional.normalize(reading.hidden.float(), dim=-1)
        count = keep.sum(1, keepdim=True)
        pooled = (unit * keep[:, :, None]).sum(1) / count.clamp(min=1)
        slot_words = None
        if reading.word_ids is not None and reading.word_probabilities is not None:
            slot_words = self._slot_words(reading.word_ids[keep], reading.word_probabilities[keep])
        return Representations(
            dense=unit[keep].cpu().numpy(),
            offsets=np.concatenate([[0], np.cumsum(count.flatten().cpu().numpy())]).astype(np.int64),
            pooled=pooled.cpu().numpy(),
            sparse=self._sparse(reading, texts),
            words=slot_words,
            provenance=self.provenance,
        )

    def _sparse(self, reading: Reading, texts: list[str]) -> sp.csr_matrix:
        if self.term_rule is None:
            return sp.csr_matrix((len(texts), 0), dtype=np.float32)
        content = torch.from_numpy(self.content.rows(texts))
        logits = self.backbone.logits_of_rows(reading.hidden, content)
        return term_weights(logits, content, reading.keep, self.term_rule, self.vocabulary_size)

    def _slot_words(self, ids: torch.Tensor, probabilities: torch.Tensor) -> SlotWords:
        array = ids.cpu().numpy().astype(np.int32)
        strings = {int(i): self.term(int(i)) for i in np.unique(array)}
        return SlotWords(array, probabilities.float().cpu().numpy(), strings)

    def _empty(self, words: int) -> Representations:
        none = np.zeros((0, words), dtype=np.int32)
        return Representations(
            dense=np.zeros((0, self.backbone.hidden_size), dtype=np.float32),
            offsets=np.zeros(1, dtype=np.int64),
            pooled=np.zeros((0, self.backbone.hidden_size), dtype=np.float32),
            sparse=sp.csr_matrix((0, self.vocabulary_size), dtype=np.float32),
            words=SlotWords(none, none.astype(np.float32), {}) if words else None,
            provenance=self.provenance,
        )


def _passage_text(passage: PassageLike) -> object:
    if isinstance(passage, Passage):
        title, text = passage.title, passage.text
    elif isinstance(passage, Mapping):
        if "text" not in passage:
            raise InputError(f"a passage given as a mapping needs the key 'text', got {sorted(passage)}")
        title, text = str(passage.get("title") or ""), passage["text"]  # type: ignore[assignment]
    else:
        return passage
    return f"{title}. {text}" if title else text


def _checked(texts: Sequence[object]) -> list[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} is {type(text).__name__} ({text!r:.60}); give strings")
    return list(texts)  # type: ignore[arg-type]
