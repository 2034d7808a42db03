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
        part_tokens: tokens of a passage's part at least; parts of short passages overlap.

    Attributes:
        token_weights: [V] how much a token counts in a mean; None for all alike.

    Raises:
        InputError: vectors of parts are asked of a system that does not average over tokens.
    """

    token_weights: Tensor | None

    def __init__(
        self,
        encoder: PromptedEncoder,
        chunk: int = 16,
        parts: Mapping[Side, int] | None = None,
        part_share: float = 1.0,
        part_tokens: int = 0,
    ) -> None:
        if parts is not None and not isinstance(encoder, DiffEmbed):
            raise InputError(f"loss.parts needs a teacher that averages over tokens (diffembed), not {encoder.system}")
        encoder.backbone.requires_grad_(False)
        self.encoder = encoder
        self.token_weights = None
        self._chunk, self._parts, self._part_share, self._part_tokens = chunk, parts, part_share, part_tokens

    def weigh_tokens(self, sample: Sequence[str], rarity: float) -> None:
        """Let a token count idf^rarity in the means over a text, idf being BM25's over a sample of passages.

        Raises:
            InputError: the teacher does not average over tokens.
        """
        if not isinstance(self.encoder, DiffEmbed):
            raise InputError(f"teacher.rarity needs a teacher that averages over tokens, not {self.encoder.system}")
        backbone, frame = self.encoder.backbone, self.encoder.frames["passage"]
        held = torch.zeros(backbone.vocabulary_size, dtype=torch.float64)
        for ids in self.encoder.tokenise(sample, "passage"):
            held[list(set(frame.wrap(ids).ids))] += 1
        idf = torch.log1p((len(sample) - held + 0.5) / (held + 0.5))
        self.token_weights = idf.pow(rarity).float().to(backbone.device)

    @staticmethod
    def open(
        settings: TeacherSettings,
        device: torch.device,
        *,
        bf16: bool,
        parts: Mapping[Side, int] | None = None,
        part_share: float = 1.0,
        part_tokens: int = 0,
    ) -> Teacher:
        """Return the teacher that a recipe names; see the class for `parts`, `part_share` and `part_tokens`.

        Raises:
            CheckpointError: there is none such, or it cannot be read.
        """
        dtype = torch.bfloat16 if bf16 else torch.float32
        encoder = open_system(settings.base, settings.system, device=device, dtype=dtype)
        return Teacher(encoder, settings.chunk, parts, part_share, part_tokens)

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
            if count or self.token_weights is not None:
                least = self._part_tokens if side == "passage" else 0
                vectors[rows], parts[rows] = self._whole_and_parts(batch, count, least)
                continue
            reading = self.encoder.read(batch, side, 0)
            unit = F.normalize(reading.hidden.float(), dim=-1) * reading.keep[:, :, None]
            vectors[rows] = F.normalize(unit.sum(dim=1), dim=-1)
        return vectors, parts if count else None

    def _whole_and_parts(self, batch: Batch, count: int, least: int) -> tuple[Tensor, Tensor]:
        """Return unit vectors of texts [B, D], and of each of `count` parts of `least` tokens or more [B, count, D]."""
        hidden = self.encoder.backbone.hidden_states(batch.ids, batch.mask).float()
        whole = self._means(batch, hidden, 1, 0)
        if not count:
            return F.normalize(whole[:, 0], dim=-1), whole[:, 1:]
        parts = torch.lerp(whole, self._means(batch, hidden, count, least), self._part_share)
        return F.normalize(whole[:, 0], dim=-1), F.normalize(parts, dim=-1)

    def _means(self, batch: Batch, hidden: Tensor, count: int, least: int) -> Tensor:
        """Return the means [B, count, D] of hidden states over each of `count` parts of the texts."""
        shares = losses.part_shares(batch.mask.sum(dim=1), count, hidden.shape[1], least)
        if self.token_weights is not None:
            shares = F.normalize(shares * self.token_weights[batch.ids][:, None], p=1.0, dim=-1)
        return shares @ hidden

    def teach(self, inputs: StepInputs) -> StepInputs:
        """Return the inputs with the teacher's vectors of all texts."""
        found = {s: self.encode(t, s) for s, t in zip(SIDES, (inputs.queries, inputs.passages), strict=True)}
        chunks = []
        for chunk in inputs.chunks:
            (vectors, parts), rows = found[chunk.side], list(chunk.rows)
            chunks.append(replace(chunk, teacher=vectors[rows], parts=None if parts is None else parts[rows]))
        return replace(inputs, chunks=tuple(chunks))
