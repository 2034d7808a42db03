"""BatchBuilder: the examples of a step made into the chunks of one process, with everything the losses compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffretriever.conventions import Side
from diffretriever.sequences import MaskedSequence, collate
from diffretriever.terms import count_factors
from diffretriever.training.batch import SIDES, Chunk, LocalLosses, Noised, StepInputs, chunked
from diffretriever.training.drawing import Example, Streams
from diffretriever.training.gathering import World
from diffretriever.training.module import RetrieverModule, text_room
from diffretriever.training.settings import TrainingSettings
from diffretriever.training.texts import PreparedText, TextPreparer
from diffretriever.training.vocabulary import WordTargets

#: Least probability with which a token is masked, which bounds the weight 1 / t of its loss.
_LEAST_NOISE = 0.05


class BatchBuilder:
    """Makes the inputs of a process from the examples of a step.

    Args:
        settings: the run.
        module: what is trained; frames and tokenises.
        world: this process among the others.
        targets: what the vocabulary head should say; None without such objectives.
    """

    def __init__(
        self, settings: TrainingSettings, module: RetrieverModule, world: World, targets: WordTargets | None
    ) -> None:
        self._settings, self._module, self._world, self._targets = settings, module, world, targets
        self._loss = settings.loss
        self._preparer = TextPreparer(module.encoder, words=self._loss.needs_head)
        self._streams = Streams(settings.seed)

    def build(self, step: int, examples: Sequence[Example]) -> StepInputs:
        """Return the inputs of this process for a step whose examples, over all processes, are given."""
        shares = _shares(examples, self._world.size)
        own = shares[self._world.rank]
        texts = {"query": [e.query for e in own], "passage": [p for e in own for p in (e.positive, *e.negatives)]}
        prepared = {side: self._prepare(texts[side], side, step) for side in SIDES}
        counts = [sum(1 + len(e.negatives) for e in share) for share in shares]
        before = sum(counts[: self._world.rank])
        longest = {"query": len(own), "passage": max(counts)}
        chunks = [
            self._chunk(prepared[side], rows, side, step, before)
            for side in SIDES
            for rows in chunked([len(t.ids) for t in prepared[side]], self._settings.optimisation.chunk, longest[side])
        ]
        seen = list(examples) if self._loss.cross_device else own
        targets, duplicates = _targets(seen)
        return StepInputs(
            step=step,
            chunks=tuple(chunks),
            queries=tuple(t.text for t in prepared["query"]),
            passages=tuple(t.text for t in prepared["passage"]),
            query_counts=tuple(len(share) for share in shares),
            passage_counts=tuple(counts),
            targets=targets,
            duplicates=duplicates if self._loss.mask_duplicates and bool(duplicates.any()) else None,
            counts=(self._counts(chunks, "query"), self._counts(chunks, "passage")),
        )

    def _prepare(self, texts: Sequence[str], side: Side, step: int) -> list[PreparedText]:
        limit = text_room(self._module, side, self._settings.data.text_limit(side, step))
        return self._preparer.prepare(texts, side, limit)

    def _chunk(
        self, prepared: Sequence[PreparedText], rows: Sequence[int], side: Side, step: int, before: int
    ) -> Chunk:
        encoder, loss = self._module.encoder, self._loss
        frame, pad = encoder.frames[side], encoder.backbone.special.pad
        texts = [prepared[r] for r in rows]
        sequences = [frame.wrap(text.ids) for text in texts]
        content = _content_ids(texts) if loss.needs_head and (loss.sparse or loss.terms) else None
        factors = weights = words = offset = noised = None
        matched = step >= loss.match_from
        if content is not None and side == "passage" and encoder.mean_words is not None:
            factors = _count_factors(texts, content, encoder.mean_words)
        if self._targets is not None and loss.terms and content is not None:
            weights = self._targets.weights(texts, side, content, loss.term_scale)
            weights = weights if factors is None else weights / factors
        if self._targets is not None and loss.words:
            words = self._targets.words(texts, frame.slots, loss.words_by)
            offset = self._targets.offsets[matched]
        if loss.denoising and side == "passage":
            rngs = [self._streams.noise(step, before + r) for r in rows]
            noised = _noised(sequences, texts, frame.prefix, frame.mask_id, encoder.backbone.spec.shift, rngs, pad)
        return Chunk(
            side=side,
            rows=tuple(rows),
            batch=collate(sequences, frame.slots, pad),
            content=content,
            factors=factors,
            weights=weights,
            words=words,
            offset=offset,
            matched=matched and loss.words_by == "salience",
            aligned=bool(loss.vectors),
            part_temperature=loss.score_temperature,
            diversity=bool(loss.diversity) and frame.slots > 1,
            noised=noised,
        )

    def _counts(self, chunks: Sequence[Chunk], side: Side) -> LocalLosses:
        own = [c for c in chunks if c.side == side]
        texts = sum(len(c.rows) for c in own)
        return LocalLosses(
            vectors=texts if self._loss.vectors else 0,
            parts=texts if self._loss.parts else 0,
            part_scores=texts if self._loss.part_scores else 0,
            words=sum(int((c.words != -100).sum()) for c in own if c.words is not None),
            terms=sum(int((c.content >= 0).sum()) for c in own if c.content is not None and c.weights is not None),
            diversity=texts,
            denoising=texts if self._loss.denoising and side == "passage" else 0,
        )


def _shares(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Return the examples of every process: neighbours stay together."""
    each = len(examples) // size
    return [list(examples[i * each : (i + 1) * each]) for i in range(size)]


def _targets(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return the numbers [N] of the positives among all passages, and [N, P] where a positive's text comes again."""
    passages = [p for e in examples for p in (e.positive, *e.negatives)]
    sizes = np.array([1 + len(e.negatives) for e in examples])
    targets = torch.from_numpy(np.cumsum(sizes) - sizes)
    numbers = {text: i for i, text in enumerate(dict.fromkeys(passages))}
    texts = torch.tensor([numbers[p] for p in passages])
    same = texts[None, :] == texts[targets][:, None]
    same[torch.arange(len(examples)), targets] = False
    return targets, same


def _content_ids(texts: Sequence[PreparedText]) -> Tensor:
    """Return the content ids of each text, [B, R] ascending, padded with -1."""
    found = [sorted({i for _, ids in text.words for i in ids}) for text in texts]
    rows = torch.full((len(texts), max((len(ids) for ids in found), default=0)), -1)
    for row, ids in zip(rows, found, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    return rows


def _count_factors(texts: Sequence[PreparedText], content: Tensor, mean_words: float) -> Tensor:
    """Return `terms.count_factors` of the content ids [B, R] of passages; 1 where there is padding."""
    factors = torch.ones(content.shape)
    for row, ids, text in zip(factors, content.tolist(), texts, strict=True):
        found = count_factors([pieces for _, pieces in text.words], mean_words)
        row[: len(found)] = torch.tensor([found[i] for i in ids if i >= 0])
    return factors


def _noised(
    sequences: Sequence[MaskedSequence],
    texts: Sequence[PreparedText],
    prefix: Sequence[int],
    mask_id: int,
    shift: int,
    rngs: Sequence[np.random.Generator],
    pad: int,
) -> Noised:
    """Return copies in which each token of a text is masked with a probability t, drawn once for the text."""
    copies, rows, positions, tokens, factors = [], [], [], [], []
    for row, (sequence, text, rng) in enumerate(zip(sequences, texts, rngs, strict=True)):
        t = float(rng.uniform(_LEAST_NOISE, 1.0))
        length = sequence.first_slot - len(prefix)
        chosen = np.flatnonzero(rng.random(min(length, len(text.ids))) < t) + len(prefix)
        chosen = chosen[chosen >= shift]
        ids = list(sequence.ids)
        for position in chosen.tolist():
            rows.append(row)
            positions.append(position - shift)
            tokens.append(ids[position])
            factors.append(1 / (t * max(1, len(text.ids))))
            ids[position] = mask_id
        copies.append(sequence._replace(ids=tuple(ids)))
    return Noised(
        collate(copies, 0, pad),
        torch.tensor(rows, dtype=torch.long),
        torch.tensor(positions, dtype=torch.long),
        torch.tensor(tokens, dtype=torch.long),
        torch.tensor(factors),
    )
