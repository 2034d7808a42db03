"""PromptedEncoder: an encoder that was opened from a checkpoint, and records and saves how it was set up."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.conventions import Protocol, Side, System, protocol_named
from diffretriever.encoding import TextEncoder
from diffretriever.errors import InputError
from diffretriever.pretrained import save_checkpoint
from diffretriever.prompts import Chat, Prompt
from diffretriever.representations import Provenance
from diffretriever.sequences import Frame
from diffretriever.terms import DEFAULT, PAPER_FINE_TUNED, PAPER_ZERO_SHOT, TermRule
from diffretriever.version import __version__


class PromptedEncoder(TextEncoder, ABC):
    """A `TextEncoder` with the settings, the prompt and the name it was opened with.

    Attributes:
        system: name of the system.
        settings: the settings, every number filled in.
        prompt: the template around the texts.
        chat: how the backbone writes a conversation.
        stops: which predicted tokens end a text's vectors early, as the provenance records it.
        slot_embeddings: [2, K_max, D] learned vectors of the masked positions, or None.

    Args:
        backbone: the language model.
        settings: the settings, with the numbers of vectors per side.
        prompt: the template around the texts.
        chat: how the backbone writes a conversation.
        frames: what surrounds the texts of each side, as token ids.
        rule: how logits become term weights; None for a system without sparse representations.
        name: name recorded in the provenance; that of the backbone's row by default.
        stops: which predicted tokens end a text's vectors early.
        slot_embeddings: learned vectors of the masked positions.
        batch_tokens: tokens per forward pass.
    """

    system: ClassVar[System]

    def __init__(
        self,
        backbone: Backbone,
        settings: RetrieverSettings,
        prompt: Prompt,
        chat: Chat,
        frames: Mapping[Side, Frame],
        rule: TermRule | None,
        *,
        name: str = "",
        stops: str = "none",
        slot_embeddings: torch.Tensor | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__(
            backbone,
            protocol_named(settings.protocol),
            frames,
            rule,
            batch_tokens,
            terms=settings.terms or "pieces",
            mean_words=settings.mean_words,
        )
        self.settings = replace(settings, prompt=prompt.to_mapping(), system=self.system)
        self.prompt = prompt
        self.chat = chat
        self.stops = stops
        self.slot_embeddings = slot_embeddings
        self._name = name or backbone.spec.name

    @property
    def provenance(self) -> Provenance:
        """Everything that must agree between two encodings for their scores to mean something."""
        s = self.settings
        query_slots, passage_slots = s.query_slots or 1, s.passage_slots or 1
        return Provenance(
            model=self._name,
            fingerprint=self.backbone.fingerprint,
            prompt=self.prompt.name,
            prompt_hash=self.prompt.digest(self.chat, query_slots, passage_slots, s.slot_positions or "after"),
            protocol=s.protocol,
            readout=s.readout,
            query_slots=query_slots,
            passage_slots=passage_slots,
            steps=s.steps,
            max_query_length=s.max_query_length,
            max_passage_length=s.max_passage_length,
            dtype=self.backbone.dtype_name,
            version=__version__,
            stops=self.stops,
            system=self.system,
            terms=f"{'counted ' if s.mean_words else ''}{s.terms or 'pieces'}",
        )

    def count_terms(self, mean_words: float) -> None:
        """Multiply the term weights of passages by `terms.count_factors` from now on."""
        self.mean_words = mean_words
        self.settings = replace(self.settings, mean_words=mean_words)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that `from_pretrained` reads: config, weights, tokeniser, slot embeddings, settings."""
        save_checkpoint(Path(path), self.backbone, self.settings, self.slot_embeddings)


def term_rule(protocol: Protocol, tuned: bool) -> TermRule:
    """Return how logits become term weights under a protocol."""
    if not protocol.quantised_terms:
        return DEFAULT
    return PAPER_FINE_TUNED if tuned else PAPER_ZERO_SHOT


def read_at(settings: RetrieverSettings, readout: str, system: str) -> RetrieverSettings:
    """Return the settings of a system that has one way to read, `readout`, and one forward pass over a text.

    Raises:
        InputError: another readout, or denoising, was asked for.
    """
    if settings.readout not in ("slot", readout):
        raise InputError(f"readout is {settings.readout!r}; {system} reads at {readout!r} only, leave the option out")
    if settings.steps != 1:
        raise InputError(
            f"steps is {settings.steps}; {system} has no masked positions to denoise, leave the option out"
        )
    return replace(settings, readout=readout)
