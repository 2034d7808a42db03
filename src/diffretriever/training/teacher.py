"""Teacher: the frozen encoder that gives target scores and vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffretriever.conventions import Side
from diffretriever.errors import InputError
from diffretriever.prompted import PromptedEncoder
from diffretriever.sequences import Batch, collate
from diffretriever.systems.diffembed import DiffEmbed
from diffretriever.systems.opening import open_system
from diffretriever.training import losses
from diffretriever.training.batch import SIDES, StepInputs, chunked
from diffretriever.training.settings import TeacherSettings


class Teacher:
    """A system that is never trained; a text's vector is the mean of its unit vectors, of length 1 again.

    Args:
        encoder: the system.
        chunk: texts per forward pass.
        parts: per side, for how many equal parts of a text it gives a vector, too; None for none.
        part_share: how much of such a vector is the part's; the rest is the whole text's.

    Raises:
        InputError: vectors of parts are asked of a system that does not average over tokens.
    """

    def __init__(
        self,
        encoder: PromptedEncoder,
        chunk: int = 16,
        parts: Mapping[Side, int] | None = None,
        part_share: float = 1.0,
    ) -> None:
        if parts is not None and not isinstance(encoder, DiffEmbed):
            raise InputError(f"loss.parts needs a teacher that averages over tokens (diffembed), not {encoder.system}")
        encoder.backbone.requires_grad_(False)
        self.encoder = encoder
        self._chunk, self._parts, self._part_share = chunk, parts, part_share

    @staticmethod
    def open(
        settings: TeacherSettings,
        device: torch.device,
        *,
        bf16: bool,
        parts: Mapping[Side, int] | None = None,
        part_share: float = 1.0,
    ) -> Teacher:
        """Return the teacher that a recipe names; see the class for `parts` and `part_share`.

        Raises:
            CheckpointError: there is none such, or it cannot be read.
        """
        dtype = torch.bfloat16 if bf16 else torch.float32
        encoder = open_system(settings.base, settings.system, device=device, dtype=dtype)
        return Teacher(encoder, settings.chunk, parts, part_share)

    @property
    def dim(self) -> int:
        """Width D of its vectors."""
        return self.encoder.dim

    @torch.no_grad()
    def encode(self, texts: Sequence[str], side: Side) -> tuple[Tensor, Tensor | None]:
        """Return [N, D] unit vectors of texts and [N, K, D] of their parts if asked for, fp32."""
        frame, backbone = self.encoder.frames[side], self.encoder.backbone
        sequences = [frame.wrap(ids) for ids in self.encoder.tokenise(texts, side)]
        vectors = torch.empty(len(texts), self.dim, device=backbone.device)
        count = self._parts[side] if self._parts else 0
        parts = torch.empty(len(texts), count, self.dim, device=backbone.device)
        for rows in chunked([len(s.ids) for s in sequences], self._chunk):
            batch = collate([sequences[r] for r in rows], frame.slots, backbone.special.pad).to(backbone.device)
            if count:
                vectors[rows], parts[rows] = self._whole_and_parts(batch, count)
                continue
            reading = self.encoder.read(batch, side, 0)
            unit = F.normalize(reading.hidden.float(), dim=-1) * reading.keep[:, :, None]
            vectors[rows] = F.normalize(unit.sum(dim=1), dim=-1)
        return vectors, parts if count else None

    def _whole_and_parts(self, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
        """Return the means of the hidden states over all tokens [B, D], and over each of `count` equal parts."""
        hidden = self.encoder.backbone.hidden_states(batch.ids, batch.mask).float()
        lengths = batch.mask.sum(dim=1)
        parts = losses.part_shares(lengths, count, hidden.shape[1]) @ hidden
        # Parts are equal, so the mean of theirs is that of all tokens.
        whole = parts.mean(dim=1, keepdim=True)
        parts = self._part_share * parts + (1.0 - self._part_share) * whole
        return F.normalize(whole[:, 0], dim=-1), F.normalize(parts, dim=-1)

    def teach(self, inputs: StepInputs) -> StepInputs:
        """Return the inputs with the teacher's vectors of all texts."""
        found = {s: self.encode(t, s) for s, t in zip(SIDES, (inputs.queries, inputs.passages), strict=True)}
        chunks = []
        for chunk in inputs.chunks:
            (vectors, parts), rows = found[chunk.side], list(chunk.rows)
            chunks.append(replace(chunk, teacher=vectors[rows], parts=None if parts is None else parts[rows]))
        return replace(inputs, chunks=tuple(chunks))
