"""Teacher: the frozen encoder that gives target scores and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffretriever.conventions import Side
from diffretriever.prompted import PromptedEncoder
from diffretriever.sequences import collate
from diffretriever.systems.opening import open_system
from diffretriever.training.batch import SIDES, StepInputs, chunked
from diffretriever.training.settings import TeacherSettings


class Teacher:
    """A system that is never trained; a text's vector is the mean of its unit vectors, of length 1 again.

    Args:
        encoder: the system.
        chunk: texts per forward pass.
    """

    def __init__(self, encoder: PromptedEncoder, chunk: int = 16) -> None:
        encoder.backbone.requires_grad_(False)
        self.encoder = encoder
        self._chunk = chunk

    @staticmethod
    def open(settings: TeacherSettings, device: torch.device, *, bf16: bool) -> Teacher:
        """Return the teacher that a recipe names.

        Raises:
            CheckpointError: there is none such, or it cannot be read.
        """
        dtype = torch.bfloat16 if bf16 else torch.float32
        return Teacher(open_system(settings.base, settings.system, device=device, dtype=dtype), settings.chunk)

    @property
    def dim(self) -> int:
        """Width D of its vectors."""
        return self.encoder.dim

    @torch.no_grad()
    def encode(self, texts: Sequence[str], side: Side) -> Tensor:
        """Return [N, D] unit vectors of texts, fp32."""
        frame, backbone = self.encoder.frames[side], self.encoder.backbone
        sequences = [frame.wrap(ids) for ids in self.encoder.tokenise(texts, side)]
        vectors = torch.empty(len(texts), self.dim, device=backbone.device)
        for rows in chunked([len(s.ids) for s in sequences], self._chunk):
            batch = collate([sequences[r] for r in rows], frame.slots, backbone.special.pad).to(backbone.device)
            reading = self.encoder.read(batch, side, 0)
            unit = F.normalize(reading.hidden.float(), dim=-1) * reading.keep[:, :, None]
            vectors[rows] = F.normalize(unit.sum(dim=1), dim=-1)
        return vectors

    def teach(self, inputs: StepInputs) -> StepInputs:
        """Return the inputs with the teacher's vectors of all texts."""
        vectors = {s: self.encode(t, s) for s, t in zip(SIDES, (inputs.queries, inputs.passages), strict=True)}
        chunks = (replace(chunk, teacher=vectors[chunk.side][list(chunk.rows)]) for chunk in inputs.chunks)
        return replace(inputs, chunks=tuple(chunks))
