"""TextEncoder: the loop that every system shares: texts in, batches through a backbone, representations out."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from diffretriever.ahead import ahead
from diffretriever.backbones.backbone import Backbone
from diffretriever.conventions import Protocol, Side, Terms
from diffretriever.corpus import Passage
from diffretriever.encoder import PassageLike
from diffretriever.errors import InputError
from diffretriever.progress import progress_bar
from diffretriever.representations import FloatArray, Provenance, Representations, SlotWords
from diffretriever.sequences import Batch, Frame, batches_by_length, collate
from diffretriever.stems import StemPieces
from diffretriever.terms import ContentWords, TermRule, strongest_weights, term_rows

log = logging.getLogger("diffretriever")

# Texts tokenised and sorted by length at once: bounds what is in memory beside the results.
_LOOK_AHEAD = 8192

# Texts that are prepared at once rather than in a thread, which costs more than it saves.
_ALONE = 16


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


class _Prepared(NamedTuple):
    """A batch ready for the device.

    Attributes:
        rows: where its texts stand in their chunk.
        last: whether it is the last of its chunk.
        batch: the framed texts; None for a chunk without texts.
        content: [B, R] content ids, padded with -1; None for a system without sparse representations.
        factors: [B, R] what their weights are multiplied by; None for nothing.
    """

    rows: list[int]
    last: bool
    batch: Batch | None
    content: torch.Tensor | None
    factors: torch.Tensor | None


class _Computed(NamedTuple):
    """What was read from a batch, on its way to the host; what is not asked for is None.

    Attributes:
        rows: where its texts stand in their chunk.
        last: whether it is the last of its chunk.
        unit: [B, K, D] unit vectors.
        pooled: [B, D] means of the vectors that count, normalised again if the protocol says so.
        keep: [B, K] which count.
        content: [B, R] content ids.
        weights: [B, R] their weights.
        word_ids: [B, K, n] predicted ids.
        word_probabilities: [B, K, n] their probabilities.
        arrived: set when the copies are whole; None where they are already.
    """

    rows: list[int]
    last: bool
    unit: torch.Tensor
    pooled: torch.Tensor
    keep: torch.Tensor
    content: torch.Tensor | None
    weights: torch.Tensor | None
    word_ids: torch.Tensor | None
    word_probabilities: torch.Tensor | None
    arrived: torch.cuda.Event | None


class TextEncoder(ABC):
    """An `Encoder` over a backbone: a system is the frames around its texts and a way to read the forward pass.

    Args:
        backbone: the language model.
        protocol: the conventions.
        frames: what surrounds the texts of each side.
        term_rule: how logits become term weights; None for a system without sparse representations.
        batch_tokens: tokens per forward pass, padding included; 2,048 on a CPU and 32,768 elsewhere by default.
        terms: whether a text weights the "pieces" of its words or their "stems" (`stems.StemPieces`).
        mean_words: content words of the mean passage, for `terms.count_factors` of passages' weights; None for weights
            in which counts play no part.
    """

    def __init__(
        self,
        backbone: Backbone,
        protocol: Protocol,
        frames: Mapping[Side, Frame],
        term_rule: TermRule | None,
        batch_tokens: int | None = None,
        terms: Terms = "pieces",
        mean_words: float | None = None,
    ) -> None:
        self.backbone = backbone
        self.protocol = protocol
        self.frames = {side: _within(frame, backbone.position_count) for side, frame in frames.items()}
        self.term_rule = term_rule
        self.mean_words = mean_words
        self.batch_tokens = batch_tokens or (2048 if backbone.device.type == "cpu" else 32768)
        excluded = frozenset({backbone.special.mask})
        if protocol.strict_content:
            excluded |= backbone.tokenizer.special_ids
        tokenizer = backbone.tokenizer
        encode_words = StemPieces(tokenizer).encode_words if terms == "stems" else tokenizer.encode_words
        self.content = ContentWords(encode_words, excluded, protocol.strict_content)

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

    @property
    def term_idf(self) -> FloatArray | None:
        """[V] how rare the model takes each term to be, in any unit; None where that is not known.

        By a learned bias of terms, both a query and a passage weight a term by about log(1 + bias) in general.
        """
        bias, rule = self.backbone.term_bias, self.term_rule
        if bias is None or rule is None or rule.scale is not None:
            return None
        return torch.log1p(torch.relu(bias.detach().float())).square().cpu().numpy()

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
        self, passages: PassageLike | Sequence[PassageLike], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N passages, row i for passage i.

        Args:
            passages: texts, `Passage` objects, or mappings with "text" and perhaps "title". A title is written
                before its text as "title. text".
            words: how many predicted words to keep per slot.
            progress: whether to show a progress bar on a terminal.
        """
        given = [passages] if isinstance(passages, str | Passage | Mapping) else list(passages)
        return self._encode(_checked([_passage_text(p) for p in given]), "passage", words, progress)

    def encode_chunks(self, chunks: Iterable[Sequence[PassageLike]], *, words: int = 0) -> Iterator[Representations]:
        """Yield the representations of each chunk of passages, in order, for corpora that do not fit into memory.

        The next batch is read, tokenised and searched for content words while one is computed. What a passage's numbers
        are depends on its chunk alone.

        Args:
            chunks: passages as `encode_passages` takes them; consumed in a thread, one batch ahead.
            words: how many predicted words to keep per slot.
        """
        texts = (_checked([_passage_text(p) for p in chunk]) for chunk in chunks)
        parts: list[_Computed] = []
        for part in self._computed(ahead(self._prepared(texts, "passage")), "passage", words):
            parts.append(part)
            if part.last:
                yield self._joined(parts, words)
                parts = []

    def _encode(self, texts: list[str], side: Side, words: int, progress: bool) -> Representations:
        windows = [texts[start : start + _LOOK_AHEAD] for start in range(0, len(texts), _LOOK_AHEAD)]
        prepared = self._prepared(windows, side)
        if len(texts) > _ALONE:
            prepared = ahead(prepared)
        done: list[Representations] = []
        parts: list[_Computed] = []
        label = "queries" if side == "query" else "passages"
        with progress_bar(f"encoding {label}", len(texts), enabled=progress) as advance:
            for part in self._computed(prepared, side, words):
                parts.append(part)
                advance(len(part.rows))
                if part.last:
                    done.append(self._joined(parts, words))
                    parts = []
        return Representations.concatenate(done) if len(done) > 1 else done[0] if done else self._empty(words)

    def _prepared(self, chunks: Iterable[list[str]], side: Side) -> Iterator[_Prepared]:
        """Yield the batches of each chunk, longest texts first."""
        frame = self.frames[side]
        for texts in chunks:
            sequences = [frame.wrap(ids) for ids in self.tokenise(texts, side)]
            lengths = [len(s.ids) for s in sequences]
            left = len(texts)
            for rows in batches_by_length(lengths, self.batch_tokens, padded=not self.backbone.packs):
                left -= len(rows)
                batch = collate([sequences[r] for r in rows], frame.slots, self.backbone.special.pad)
                content, factors = self._content([texts[r] for r in rows], side)
                yield _Prepared(rows, not left, batch, content, factors)
            if not texts:
                yield _Prepared([], True, None, None, None)

    def _content(self, texts: Sequence[str], side: Side) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the content ids [B, R] of texts and the factors [B, R] of their weights."""
        if self.term_rule is None:
            return None, None
        if self.mean_words is None or side == "query":
            return torch.from_numpy(self.content.rows(texts)), None
        rows, factors = self.content.counted_rows(texts, self.mean_words)
        return torch.from_numpy(rows), torch.from_numpy(factors)

    def _computed(self, prepared: Iterable[_Prepared], side: Side, words: int) -> Iterator[_Computed]:
        """Yield what batches give, each after the device was handed the next one."""
        before: _Computed | None = None
        for item in prepared:
            started = self._start(item, side, words)
            if before is not None:
                yield before
            before = started
        if before is not None:
            yield before

    @torch.inference_mode()
    def _start(self, item: _Prepared, side: Side, words: int) -> _Computed:
        """Hand a batch to the device; what comes back is reduced there first, and copied while the next one runs."""
        if item.batch is None:
            none = torch.zeros(0, 1, self.dim)
            return _Computed([], True, none, none[:, 0], none[:, :, 0].bool(), None, None, None, None, None)
        reading = self.read(item.batch.to(self.backbone.device), side, words)
        keep = reading.keep
        unit = torch.nn.functional.normalize(reading.hidden.float(), dim=-1)
        pooled = (unit * keep[:, :, None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
        if self.protocol.unit_pooled:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        weights = None
        if self.term_rule is not None and item.content is not None:
            content = item.content.to(reading.hidden.device, non_blocking=True)
            weights = strongest_weights(
                self.backbone.logits_of_rows(reading.hidden, content), content, keep, self.term_rule
            )
            if item.factors is not None:
                weights = weights * item.factors.to(weights.device, non_blocking=True)
        some = (_to_host(t) for t in (unit, pooled, keep))
        others = (
            _to_host(t) if t is not None else None for t in (weights, reading.word_ids, reading.word_probabilities)
        )
        (unit, pooled, keep), (weights, word_ids, probabilities) = some, others
        # On the stream of the device that computes, which need not be the current device.
        device = reading.hidden.device
        arrived = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        return _Computed(
            item.rows, item.last, unit, pooled, keep, item.content, weights, word_ids, probabilities, arrived
        )

    def _joined(self, parts: list[_Computed], words: int) -> Representations:
        """Return the representations of one chunk, in its order, from its batches."""
        done = [self._representations(part) for part in parts if part.rows]
        if not done:
            return self._empty(words)
        order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
        whole = Representations.concatenate(done) if len(done) > 1 else done[0]
        return whole.select(order)

    def _representations(self, part: _Computed) -> Representations:
        if part.arrived is not None:
            part.arrived.synchronize()
        keep = part.keep.numpy()
        slot_words = None
        if part.word_ids is not None and part.word_probabilities is not None:
            slot_words = self._slot_words(part.word_ids[part.keep], part.word_probabilities[part.keep])
        sparse = sp.csr_matrix((len(keep), 0), dtype=np.float32)
        if part.weights is not None and part.content is not None:
            sparse = term_rows(part.weights.numpy(), part.content.numpy(), self.vocabulary_size)
        return Representations(
            dense=part.unit.numpy()[keep],
            offsets=np.concatenate([[0], np.cumsum(keep.sum(1))]).astype(np.int64),
            pooled=part.pooled.numpy(),
            sparse=sparse,
            words=slot_words,
            provenance=self.provenance,
        )

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


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in the host's memory; from a CUDA device it arrives later, and nothing waits for it here."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _within(frame: Frame, positions: int | None) -> Frame:
    """Return a frame whose longest sequence a model of so many positions can read; None for any number.

    Raises:
        InputError: that leaves no room for text.
    """
    excess = 0 if positions is None else frame.longest - positions
    if excess <= 0:
        return frame
    if excess >= frame.text_room:
        raise InputError(
            f"what surrounds a {frame.side}'s text takes all of the model's {positions} positions; use fewer slots or "
            "a shorter prompt"
        )
    log.warning(
        "a %s sequence of %d tokens was asked for and the model has %d positions: longer texts are cut at these",
        frame.side, frame.longest, positions,
    )  # fmt: skip
    return replace(frame, text_room=frame.text_room - excess)


def _passage_text(passage: PassageLike) -> object:
    if isinstance(passage, Passage):
        title, text = passage.title, passage.text
    elif isinstance(passage, Mapping):
        if "text" not in passage:
            raise InputError(f"a passage given as a mapping needs the key 'text', got {sorted(passage)}")
        title, text = str(passage.get("title") or ""), passage["text"]  # type: ignore[assignment]
    else:
        return passage
    return f"{title}. {text}" if title and isinstance(text, str) else text


def _checked(texts: Sequence[object]) -> list[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} is {type(text).__name__} ({text!r:.60}); give strings")
    return list(texts)  # type: ignore[arg-type]
