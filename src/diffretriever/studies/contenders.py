"""Contenders: the systems of the latency study, several numbers of vectors over one backbone in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.pretrained import Checkpoint, open_checkpoint
from diffretriever.prompted import PromptedEncoder
from diffretriever.retriever import DiffRetriever
from diffretriever.studies.latency_results import TimedSystem
from diffretriever.studies.shapes import random_backbone
from diffretriever.systems.diffembed import DiffEmbed
from diffretriever.systems.promptreps import PromptReps
from diffretriever.systems.repllama import RepLLaMA

_POOLED: dict[str, type[DiffEmbed] | type[RepLLaMA]] = {cls.system: cls for cls in (DiffEmbed, RepLLaMA)}

#: Longest sequence of the study in tokens, where the model has room for it.
_LONGEST = 1024


@dataclass(frozen=True)
class Contender:
    """One system at one number of vectors.

    Attributes:
        about: what it is.
        encoder: what encodes.
    """

    about: TimedSystem
    encoder: PromptedEncoder


def loaded(
    name: str, slots: Sequence[int], answers: Sequence[int], device: str | None, dtype: str | None
) -> list[Contender]:
    """Return a checkpoint's contenders: DiffRetriever with K of `slots`, or PromptReps with N of `answers` if causal.

    A model that learned a vector per slot takes no more slots than it has.

    Args:
        name: a model; "diffembed:MODEL" and "repllama:MODEL" ask for these systems, which have one vector.
        slots: numbers of masked positions K.
        answers: numbers of decoded tokens N.
        device: where the weights go.
        dtype: dtype of the weights.
    """
    system, _, model = name.rpartition(":")
    if system not in _POOLED:
        system, model = "", name
    checkpoint = open_checkpoint(model, {"system": system} if system else {}, device=device, dtype=dtype)
    if system:
        return [_pooled(checkpoint, system, Path(model).name)]
    learned = checkpoint.slot_embeddings
    if learned is not None:
        slots = [k for k in slots if k <= learned.shape[1]]
    return _contenders(checkpoint, Path(model).name, slots, answers, "loaded")


def shaped(
    shape: str,
    slots: Sequence[int],
    answers: Sequence[int],
    device: torch.device | None,
    dtype: torch.dtype | None,
    seed: int,
) -> list[Contender]:
    """Return the contenders of a shape with random weights."""
    backbone = random_backbone(shape, device=device, dtype=dtype, seed=seed)
    # A tuned model keeps all its slots, as every published latency assumes.
    checkpoint = Checkpoint(backbone, RetrieverSettings(tuned=True), None)
    return _contenders(checkpoint, shape, slots, answers, "random")


def _contenders(
    checkpoint: Checkpoint, name: str, slots: Sequence[int], answers: Sequence[int], weights: str
) -> list[Contender]:
    backbone = checkpoint.backbone
    causal = backbone.spec.attention == "causal"
    room = min(_LONGEST, _positions(backbone))
    made = []
    for count in answers if causal else slots:
        settings = replace(
            checkpoint.settings,
            query_slots=count,
            passage_slots=count,
            max_query_length=room,
            max_passage_length=room,
        )
        encoder: PromptedEncoder
        if causal:
            encoder = PromptReps(backbone, settings, name=name)
        else:
            encoder = DiffRetriever(backbone, settings, name=name, slot_embeddings=checkpoint.slot_embeddings)
        made.append(_contender(encoder, f"{name} {'N' if causal else 'K'}={count}", name, count, weights))
    return made


def _pooled(checkpoint: Checkpoint, system: str, name: str) -> Contender:
    room = min(_LONGEST, _positions(checkpoint.backbone))
    settings = replace(checkpoint.settings, prompt=None, max_query_length=room, max_passage_length=room)
    encoder = _POOLED[system](checkpoint.backbone, settings, name=name)
    return _contender(encoder, f"{system}:{name}", name, 1, "loaded")


def _contender(encoder: PromptedEncoder, key: str, name: str, count: int, weights: str) -> Contender:
    backbone = encoder.backbone
    return Contender(
        TimedSystem(
            key=key,
            system=encoder.system,
            model=name,
            vectors=count,
            variant="single" if count == 1 else "multi",
            weights=weights,
            parameters=sum(p.numel() for p in backbone.model.parameters()),
            dtype=backbone.dtype_name,
        ),
        encoder,
    )


def _positions(backbone: Backbone) -> int:
    return int(getattr(backbone.model.config, "max_position_embeddings", None) or _LONGEST)
