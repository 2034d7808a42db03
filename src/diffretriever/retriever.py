"""DiffRetriever: masked positions in, K dense vectors and K vocabulary distributions out, from one forward pass."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from typing_extensions import Unpack

from diffretriever.backbones.backbone import Backbone
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.conventions import Protocol, Side, System, protocol_named
from diffretriever.denoising import Denoising, kept_slots, read_slots
from diffretriever.encoding import Reading
from diffretriever.errors import CheckpointError, InputError
from diffretriever.pretrained import BackboneOptions, open_checkpoint
from diffretriever.prompted import PromptedEncoder, term_rule
from diffretriever.prompts import Chat, Prompt
from diffretriever.sequences import Batch, Frame, build_frame


class DiffRetriever(PromptedEncoder):
    """The paper's retriever over any diffusion backbone, zero-shot or tuned (docs/method.md, 1 to 8).

    Example:
        >>> from diffretriever import DiffRetriever
        >>> model = DiffRetriever.from_pretrained("mini")
        >>> queries = model.encode_queries(["what causes the seasons?"])
        >>> queries.vectors(0).shape
        (4, 384)
    """

    system: ClassVar[System] = "diffretriever"

    def __init__(
        self,
        backbone: Backbone,
        settings: RetrieverSettings,
        *,
        name: str = "",
        slot_embeddings: torch.Tensor | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Build a retriever from a loaded backbone; `from_pretrained` is the usual way.

        Args:
            backbone: the language model.
            settings: prompt, K and the rest; what is None is taken from the backbone's row.
            name: name recorded in the provenance.
            slot_embeddings: [2, K_max, D] learned vectors of the query's and the passage's masked positions.
            batch_tokens: tokens per forward pass, padding included; 2,048 on a CPU and 32,768 elsewhere by default.
        """
        spec = backbone.spec
        if spec.attention == "causal":
            raise CheckpointError(f"{name or spec.name}: a causal model has no masked positions to read")
        query_slots = spec.slots[0] if settings.query_slots is None else settings.query_slots
        passage_slots = spec.slots[1] if settings.passage_slots is None else settings.passage_slots
        protocol = protocol_named(settings.protocol)
        chat = Chat.usual(spec.chat, backbone.tokenizer.id_of)
        prompt = Prompt.choose(settings.prompt, spec.prompt, query_slots, passage_slots)

        def frame(side: Side, slots: int, max_length: int) -> Frame:
            special, spread = backbone.special, settings.slot_positions == "spread"
            return build_frame(
                side, prompt, chat, backbone.tokenizer, special, protocol, slots, max_length, spread=spread
            )

        super().__init__(
            backbone,
            replace(settings, query_slots=query_slots, passage_slots=passage_slots),
            prompt,
            chat,
            {
                "query": frame("query", query_slots, settings.max_query_length),
                "passage": frame("passage", passage_slots, settings.max_passage_length),
            },
            term_rule(protocol, settings.tuned),
            name=name,
            stops="none" if settings.tuned else "special",
            slot_embeddings=_checked_slot_embeddings(slot_embeddings, backbone, max(query_slots, passage_slots)),
            batch_tokens=batch_tokens,
        )
        self.denoising = _denoising(settings, protocol, spec.shift)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "mini",
        *,
        query_slots: int | None = None,
        passage_slots: int | None = None,
        prompt: str | Path | None = None,
        protocol: str | None = None,
        readout: str | None = None,
        steps: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        batch_tokens: int | None = None,
        **backbone_options: Unpack[BackboneOptions],
    ) -> DiffRetriever:
        """Return the retriever of a checkpoint; options that are None are those the checkpoint records.

        Args:
            name_or_path: "mini" (shipped), a folder, an alias ("dream-7b", "llada-8b") or a hub id. A folder may hold
                a full model, a LoRA adapter in PEFT's layout, or a checkpoint of the paper's code.
            query_slots: K_q.
            passage_slots: K_p.
            prompt: name of a template or path of a JSON file.
            protocol: "default" or "paper".
            readout: "slot", or "aligned" to read shifted backbones one position earlier.
            steps: denoising steps S.
            max_query_length: longest query in tokens.
            max_passage_length: longest passage in tokens.
            batch_tokens: tokens per forward pass.
            backbone_options: base, device, dtype, attention, device_map: see `open_checkpoint`.

        Raises:
            CheckpointError: files are missing, foreign or do not fit.
            InputError: an option is out of range.
        """
        given: dict[str, object] = {
            "system": cls.system,
            "query_slots": query_slots,
            "passage_slots": passage_slots,
            "prompt": None if prompt is None else str(prompt),
            "protocol": protocol,
            "readout": readout,
            "steps": steps,
            "max_query_length": max_query_length,
            "max_passage_length": max_passage_length,
        }
        checkpoint = open_checkpoint(name_or_path, given, **backbone_options)
        return cls(
            checkpoint.backbone,
            checkpoint.settings,
            name=str(name_or_path),
            slot_embeddings=checkpoint.slot_embeddings,
            batch_tokens=batch_tokens,
        )

    def read(self, batch: Batch, side: Side, words: int) -> Reading:
        """Return the hidden states and predictions at the masked positions (docs/method.md, 3 and 11)."""
        readings = read_slots(
            self.backbone,
            batch,
            self._slot_embeddings(side),
            self.denoising,
            words=words,
            predict=self.stops != "none",
        )
        hidden, predictions = readings.hidden, readings.predictions
        keep = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if predictions is None:
            return Reading(hidden, keep)
        if self.stops != "none":
            keep = self._kept(predictions.tokens)
        if not words:
            return Reading(hidden, keep)
        return Reading(hidden, keep, predictions.word_ids, predictions.word_probabilities)

    def _kept(self, tokens: torch.Tensor) -> torch.Tensor:
        special = self.backbone.tokenizer.special_ids - {self.backbone.special.mask}
        stop_ids = torch.tensor(sorted(special), device=tokens.device)
        quotes = torch.tensor(self._quote_ids, device=tokens.device) if self.stops == "structural" else None
        return kept_slots(tokens, stop_ids, quotes)

    @cached_property
    def _quote_ids(self) -> list[int]:
        return [i for i in range(len(self.backbone.tokenizer)) if '"' in self.term(i)]

    def _slot_embeddings(self, side: Side) -> torch.Tensor | None:
        if self.slot_embeddings is None:
            return None
        rows = self.slot_embeddings[0 if side == "query" else 1, : self.frames[side].slots]
        return rows.to(self.backbone.device)


def _checked_slot_embeddings(slots: torch.Tensor | None, backbone: Backbone, needed: int) -> torch.Tensor | None:
    if slots is None:
        return None
    if slots.dim() != 3 or slots.shape[0] != 2 or slots.shape[2] != backbone.hidden_size:
        raise CheckpointError(f"slot_embeddings have shape {list(slots.shape)}, not [2, K, {backbone.hidden_size}]")
    if slots.shape[1] < needed:
        raise InputError(f"{needed} masked positions asked for; this model has learned {slots.shape[1]}")
    return slots


def _denoising(settings: RetrieverSettings, protocol: Protocol, shift: int) -> Denoising:
    if settings.steps < 1:
        raise InputError(f"steps is {settings.steps}; at least 1 denoising step is needed")
    if settings.readout not in ("slot", "aligned"):
        raise InputError(f"readout is {settings.readout!r}; choose 'slot' or 'aligned'")
    offset = -shift if settings.readout == "aligned" else 0
    return Denoising(settings.steps, linear=protocol.linear_schedule and settings.tuned, offset=offset)
