"""Variants: retrievers that share one backbone in memory and differ in K, in the prompt, or in noise on the slots.

Scores of a pair (K_q, K_p) need the queries with K_q slots and the passages with K_p. With full attention the first 4
of 16 masked positions are not the encoding with 4, so every K is encoded for real; but the passages of (1, 16) and
(4, 16) are the same wherever their frames are, and are encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch

from diffretriever.checkpoint import RetrieverSettings
from diffretriever.encoder import PassageLike
from diffretriever.errors import InputError
from diffretriever.pretrained import Checkpoint
from diffretriever.prompts import Prompt
from diffretriever.representations import FloatArray, Provenance, Representations
from diffretriever.retriever import DiffRetriever
from diffretriever.sequences import Frame

#: Seed of the noise of a variant, and its size in relation to the vectors of the vocabulary; (0, 0) is none.
Noise = tuple[int, float]
_QUIET: Noise = (0, 0.0)


@dataclass(frozen=True)
class Side:
    """What one side of a variant is encoded with; equal sides give equal numbers.

    Attributes:
        frame: prompt, masked positions and lengths as token ids.
        noise: noise on the masked positions.
    """

    frame: Frame
    noise: Noise


@dataclass
class Variant:
    """An `Encoder` whose sides may come from two retrievers.

    Attributes:
        name: its name in files and tables.
        queries: retriever of the queries.
        passages: retriever of the passages.
        query_side: what the queries are encoded with.
        passage_side: what the passages are encoded with.
        cache: encoded queries of all variants, by side and texts.
        own: provenance of the results.
    """

    name: str
    queries: DiffRetriever
    passages: DiffRetriever
    query_side: Side
    passage_side: Side
    cache: dict[tuple[Side, tuple[str, ...]], Representations]
    own: Provenance

    @property
    def provenance(self) -> Provenance:
        """How its numbers are made."""
        return self.own

    @property
    def dim(self) -> int:
        """Width D of the dense vectors."""
        return self.queries.dim

    @property
    def vocabulary_size(self) -> int:
        """Number V of columns of the sparse representations."""
        return self.queries.vocabulary_size

    @property
    def term_idf(self) -> FloatArray | None:
        """[V] how rare the model takes each term to be."""
        return self.queries.term_idf

    def term(self, term_id: int) -> str:
        """Return the readable text of a vocabulary id."""
        return self.queries.term(term_id)

    def encode_queries(
        self, queries: str | Sequence[str], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N queries; the same texts with the same side are encoded once."""
        texts = (queries,) if isinstance(queries, str) else tuple(queries)
        key = (self.query_side, texts)
        if key not in self.cache or words:
            self.cache[key] = self.queries.encode_queries(texts, words=words, progress=progress)
        return replace(self.cache[key], provenance=self.own)

    def encode_passages(
        self, passages: PassageLike | Sequence[PassageLike], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N passages."""
        encoded = self.passages.encode_passages(passages, words=words, progress=progress)
        return replace(encoded, provenance=self.own)


class VariantFactory:
    """Makes variants of one checkpoint.

    Args:
        checkpoint: a masked-position model.
        name: name recorded in the provenance.
        batch_tokens: tokens per forward pass.

    Raises:
        InputError: the model has no masked positions.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, batch_tokens: int | None = None) -> None:
        if checkpoint.backbone.spec.attention == "causal":
            raise InputError(f"{name}: a causal model has no masked positions to sweep over")
        self._checkpoint = checkpoint
        self._name = name
        self._batch_tokens = batch_tokens
        self._queries: dict[tuple[Side, tuple[str, ...]], Representations] = {}
        self._passages: dict[Side, DiffRetriever] = {}

    @property
    def prompt(self) -> Prompt:
        """The model's own prompt."""
        return self._retriever(*self.default, None, _QUIET).prompt

    @property
    def default(self) -> tuple[int, int]:
        """The model's own pair."""
        settings, spec = self._checkpoint.settings, self._checkpoint.backbone.spec
        return settings.query_slots or spec.slots[0], settings.passage_slots or spec.slots[1]

    def pair(self, query_slots: int, passage_slots: int) -> Variant:
        """Return the variant of a pair (K_q, K_p), whose numbers are those of the checkpoint opened with it."""
        retriever = self._retriever(query_slots, passage_slots, None, _QUIET)
        return self._variant(f"q{query_slots}-p{passage_slots}", retriever, retriever, _QUIET, _QUIET)

    def worded(self, pair: tuple[int, int], query_prompt: Prompt, passage_prompt: Prompt) -> Variant:
        """Return a variant with one prompt for the queries and another for the passages."""
        queries, passages = (self._retriever(*pair, prompt, _QUIET) for prompt in (query_prompt, passage_prompt))
        name = f"prompts-{query_prompt.name}-{passage_prompt.name}"
        return self._variant(name, queries, passages, _QUIET, _QUIET)

    def noisy(self, pair: tuple[int, int], query_noise: Noise, passage_noise: Noise) -> Variant:
        """Return a variant with noise on the masked positions' inputs, one for the queries and one for the passages."""
        queries, passages = (self._retriever(*pair, None, noise) for noise in (query_noise, passage_noise))
        name = f"noise-{query_noise[1]:g}-{query_noise[0]}-{passage_noise[0]}"
        return self._variant(name, queries, passages, query_noise, passage_noise)

    def _variant(
        self, name: str, queries: DiffRetriever, passages: DiffRetriever, query_noise: Noise, passage_noise: Noise
    ) -> Variant:
        query_side = Side(queries.frames["query"], query_noise)
        passage_side = Side(passages.frames["passage"], passage_noise)
        shared = self._passages.setdefault(passage_side, passages)
        return Variant(
            name, queries, shared, query_side, passage_side, self._queries, _provenance(queries, passages, name)
        )

    def _retriever(self, query_slots: int, passage_slots: int, prompt: Prompt | None, noise: Noise) -> DiffRetriever:
        checkpoint = self._checkpoint
        settings: RetrieverSettings = replace(checkpoint.settings, query_slots=query_slots, passage_slots=passage_slots)
        if prompt is not None:
            settings = replace(settings, prompt=prompt.to_mapping())
        slots = checkpoint.slot_embeddings
        if noise[1]:
            slots = self._with_noise(slots, max(query_slots, passage_slots), noise)
        return DiffRetriever(
            checkpoint.backbone, settings, name=self._name, slot_embeddings=slots, batch_tokens=self._batch_tokens
        )

    def _with_noise(self, slots: torch.Tensor | None, count: int, noise: Noise) -> torch.Tensor:
        """Return [2, K, D] slot embeddings with normal noise, in units of the deviation of the input embeddings."""
        backbone = self._checkpoint.backbone
        weight = backbone.model.get_input_embeddings().weight  # type: ignore[operator]
        unit = float(weight[:1024].float().std())
        base = torch.zeros(2, count, backbone.hidden_size) if slots is None else slots.float().cpu()
        generator = torch.Generator().manual_seed(noise[0])
        return base + noise[1] * unit * torch.randn(base.shape, generator=generator)


def _provenance(queries: DiffRetriever, passages: DiffRetriever, name: str) -> Provenance:
    """Return the provenance of a pair as it is, and of a variant whose sides differ one of its own."""
    own = queries.provenance
    if queries is passages:
        return own
    return replace(
        own,
        fingerprint=f"{own.fingerprint}+{name}",
        prompt=f"{own.prompt}/{passages.provenance.prompt}",
        prompt_hash=f"{own.prompt_hash}/{passages.provenance.prompt_hash}",
    )


def passage_key(variant: Variant) -> Variant:
    """Return the variant with a provenance that depends on its passage side alone, to find encodings of passages by."""
    made, side = variant.passages.provenance, variant.passage_side
    seed, size = side.noise
    return replace(
        variant,
        own=replace(
            made,
            fingerprint=made.fingerprint + (f"+noise-{size:g}-{seed}" if size else ""),
            prompt="",
            prompt_hash=sha256(repr(side.frame).encode()).hexdigest()[:16],
            query_slots=made.passage_slots,
            max_query_length=made.max_passage_length,
        ),
    )
