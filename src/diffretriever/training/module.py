"""RetrieverModule: what is trained; it frames and reads texts by the code that inference uses."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffretriever.conventions import Side
from diffretriever.errors import CheckpointError
from diffretriever.prompted import PromptedEncoder
from diffretriever.retriever import DiffRetriever
from diffretriever.systems.diffembed import DiffEmbed
from diffretriever.systems.promptreps import PromptReps
from diffretriever.systems.repllama import RepLLaMA
from diffretriever.training import losses
from diffretriever.training.base import Base
from diffretriever.training.batch import SIDES, Chunk, LocalLosses
from diffretriever.training.model_settings import ModelSettings

_OTHERS: dict[str, type[DiffEmbed] | type[RepLLaMA] | type[PromptReps]] = {
    cls.system: cls for cls in (DiffEmbed, RepLLaMA, PromptReps)
}
#: Parts of parameter names that belong to the vocabulary head.
HEAD_PARTS = (".predictions.", "lm_head.", "term_bias")


class Outputs(NamedTuple):
    """What a chunk of B texts gives.

    Attributes:
        dense: [B, K, D] unit vectors, fp32; in the place of slots that encoding drops, what changes no score.
        keep: [B, K] False for those.
        weights: [B, R] term weights of the texts' own content ids; empty for a chunk without content ids.
        local: [7] sums of the local losses, in the order of `LocalLosses`.
    """

    dense: Tensor
    keep: Tensor
    weights: Tensor
    local: Tensor


class RetrieverModule(nn.Module):
    """A system over a backbone, with one learned embedding per slot and side if wanted.

    Attributes:
        encoder: the system; it shares the backbone and reads the slot embeddings of this module.
        backbone: the language model.
        slot_embeddings: [2, K_max, D], added to the inputs of the masked positions; None for none.

    Args:
        encoder: the system.
        slot_embeddings: what the slot embeddings are at first.
    """

    slot_embeddings: nn.Parameter | None

    def __init__(self, encoder: PromptedEncoder, slot_embeddings: Tensor | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.backbone = encoder.backbone
        if slot_embeddings is None:
            self.register_parameter("slot_embeddings", None)
        else:
            self.slot_embeddings = nn.Parameter(slot_embeddings.clone())

    def forward(self, chunk: Chunk) -> Outputs:
        """Return the representations of a chunk on the backbone's device, and sums of its local losses."""
        # Set anew each time: wrappers that shard parameters put views in the place of what was registered.
        self.encoder.slot_embeddings = self.slot_embeddings
        hidden, keep, *_ = self.encoder.read(chunk.batch, chunk.side, 0)
        # Slots that encoding drops (after the end of a decoded answer) change no maximum as copies of the first, which
        # is never dropped, and add nothing to MaxSim as zeros of a query.
        hidden = torch.where(keep[:, :, None], hidden, hidden[:, :1])
        dense = F.normalize(hidden.float(), dim=-1)
        kept = dense * keep[:, :, None]
        if chunk.side == "query":
            dense = kept
        none = dense.sum() * 0.0
        vectors = parts = part_scores = words = terms = diversity = denoising = none
        weights = none.expand(len(dense), 0)
        if chunk.content is not None:
            logits = self.backbone.logits_of_rows(hidden, chunk.content).float()
            own = chunk.content >= 0
            weights = losses.term_weights(logits, own)
            if chunk.weights is not None:
                terms = losses.term_regression(logits, own, chunk.weights)
            if chunk.factors is not None:
                weights = weights * chunk.factors
        if chunk.words is not None:
            words = self._word_loss(hidden, chunk)
        if chunk.teacher is not None and chunk.aligned:
            vectors = losses.vector_alignment(kept, chunk.teacher)
        if chunk.parts is not None:
            parts = losses.part_alignment(dense, chunk.parts)
            part_scores = losses.part_distillation(dense, chunk.parts, chunk.part_temperature)
        if chunk.diversity:
            diversity = losses.slot_cosine(kept)
        if chunk.noised is not None:
            denoising = self._denoising_loss(chunk)
        local = [vectors, parts, part_scores, words, terms, diversity, denoising]
        return Outputs(dense, keep, weights, torch.stack(local).float())

    def _word_loss(self, hidden: Tensor, chunk: Chunk) -> Tensor:
        """Return the summed cross entropy of the words that slots [B, K, D] should say."""
        targets, offset = chunk.words, chunk.offset
        if targets is None or offset is None:
            raise ValueError("a chunk has words or an offset, but not both")
        if not chunk.matched:
            wanted = targets != -100
            return losses.slot_words(self.backbone.logits(hidden[wanted]).float(), targets[wanted], offset)
        logits = self.backbone.logits(hidden).float()
        targets = losses.match_slots(logits + offset, targets)
        wanted = targets != -100
        return losses.slot_words(logits[wanted], targets[wanted], offset)

    def _denoising_loss(self, chunk: Chunk) -> Tensor:
        noised = chunk.noised
        if noised is None:
            raise ValueError("a chunk without corrupted texts")
        batch = noised.batch
        hidden = self.backbone.hidden_states(batch.ids, batch.mask, positions=batch.positions)
        logits = self.backbone.logits(hidden[noised.rows, noised.positions]).float()
        return losses.denoising(logits, noised.tokens, noised.factors)

    def freeze_head(self) -> None:
        """Train the vocabulary head no further, where no objective reads it; embeddings tied to it are trained on."""
        if self.backbone.term_bias is not None:
            self.backbone.term_bias.requires_grad_(False)
        head = self.backbone.model.get_output_embeddings()  # type: ignore[operator]
        inputs = self.backbone.model.get_input_embeddings()  # type: ignore[operator]
        if head is not None and head.weight is not inputs.weight:
            head.requires_grad_(False)
        for name, parameter in self.named_parameters():
            if ".predictions." in name and parameter is not inputs.weight:
                parameter.requires_grad_(False)
        if self.backbone.spec.transform and hasattr(self.backbone.model, self.backbone.spec.transform.split(".")[0]):
            self.backbone.model.get_submodule(self.backbone.spec.transform).requires_grad_(False)


def build_module(base: Base, settings: ModelSettings, seed: int) -> RetrieverModule:
    """Return the module that a run trains, all of its weights trainable.

    Args:
        base: the model to start from.
        settings: the system and its slot embeddings.
        seed: of the random part of the slot embeddings.

    Raises:
        CheckpointError: the system cannot read this backbone.
    """
    if settings.term_bias and base.backbone.term_bias is None:
        zeros = torch.zeros(base.backbone.vocabulary_size, device=base.backbone.device)
        base.backbone.term_bias = nn.Parameter(zeros)
    if settings.system != "diffretriever":
        return RetrieverModule(_OTHERS[settings.system](base.backbone, base.settings))
    encoder = DiffRetriever(base.backbone, base.settings)
    slots = _first_slot_embeddings(encoder, base.slot_embeddings, settings, seed)
    return RetrieverModule(encoder, slots)


def _first_slot_embeddings(
    encoder: DiffRetriever, known: Tensor | None, settings: ModelSettings, seed: int
) -> Tensor | None:
    """Return what the slot embeddings [2, K_max, D] are at first; None for none."""
    slots = max(encoder.frames[side].slots for side in SIDES)
    if settings.slot_start == "auto" and known is not None:
        if known.shape[1] < slots:
            raise CheckpointError(
                f"the base has learned {known.shape[1]} slots and the recipe asks for {slots}; ask for fewer, or set "
                "model.slot_start to random or a word"
            )
        return known.to(encoder.backbone.device)
    if not settings.slot_embeddings:
        return None
    generator = torch.Generator().manual_seed(seed)
    noise = settings.slot_noise * torch.randn(2, slots, encoder.dim, generator=generator)
    if settings.slots_start_as_a_token:
        first = encoder.backbone.tokenizer.id_of(settings.slot_start)
        if first is None:
            raise CheckpointError(
                f"model.slot_start is {settings.slot_start!r}, which is neither auto nor random nor an item of the "
                "vocabulary; choose another"
            )
        weight = encoder.backbone.model.get_input_embeddings().weight.detach()  # type: ignore[operator]
        noise = noise + (weight[first] - weight[encoder.backbone.special.mask]).float().cpu()
    return noise.to(encoder.backbone.device)


def text_room(module: RetrieverModule, side: Side, limit: int | None) -> int:
    """Return how many tokens a text of a side may have, the frame's room at most."""
    room = module.encoder.frames[side].text_room
    return room if limit is None else min(room, limit)


LOCAL = LocalLosses._fields
