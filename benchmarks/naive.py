"""The naive way to encode: what research code commonly does, with the same weights and the same numbers out.

Texts in padded batches of 8 in the order given; logits over the whole vocabulary at every position; the hidden states
of all layers kept; vectors and term weights made text by text and slot by slot over rows as wide as the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from diffretriever.backbones.attention import attention_mask
from diffretriever.conventions import Side
from diffretriever.representations import Representations
from diffretriever.retriever import DiffRetriever
from diffretriever.sequences import collate
from diffretriever.terms import count_factors

BATCH = 8


class NaiveText(NamedTuple):
    """One text: a unit vector per slot [K, D], and its term weights by vocabulary id."""

    vectors: np.ndarray
    terms: dict[int, float]


@torch.inference_mode()
def encode(retriever: DiffRetriever, texts: Sequence[str], side: Side = "passage") -> list[NaiveText]:
    """Return what `DiffRetriever` returns for tuned models, computed naively."""
    backbone, frame = retriever.backbone, retriever.frames[side]
    implementation = backbone.model.config._attn_implementation
    backbone.model.config._attn_implementation = "sdpa"
    out: list[NaiveText] = []
    try:
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            sequences = [frame.wrap(retriever.tokenise([text], side)[0]) for text in some]
            batch = collate(sequences, frame.slots, backbone.special.pad)
            embeddings = backbone.model.get_input_embeddings()(batch.ids)
            if retriever.slot_embeddings is not None:
                added = retriever.slot_embeddings[0 if side == "query" else 1, : frame.slots].to(embeddings.dtype)
                for row in range(len(some)):
                    embeddings[row, batch.slots[row]] += added
            output = backbone.model(
                inputs_embeds=embeddings,
                attention_mask=attention_mask(backbone.spec, batch.mask, "sdpa", backbone.block_length),
                output_hidden_states=True,
                **({} if batch.positions is None else {"position_ids": batch.positions}),
            )
            hidden = output.hidden_states[-1]
            logits = output.logits if backbone.term_bias is None else output.logits + backbone.term_bias
            for row, text in enumerate(some):
                one = _one(retriever, hidden[row], logits[row], batch.slots[row].tolist(), text)
                out.append(one if side == "query" else _counted(retriever, one, text))
    finally:
        backbone.model.config._attn_implementation = implementation
    return out


def _one(
    retriever: DiffRetriever, hidden: torch.Tensor, logits: torch.Tensor, slots: list[int], text: str
) -> NaiveText:
    allowed = torch.zeros(logits.shape[-1])
    allowed[torch.from_numpy(retriever.content.ids(text))] = 1
    vectors, terms = [], {}
    for slot in slots:
        vector = hidden[slot].float()
        vectors.append((vector / vector.norm()).numpy())
        weights = torch.log1p(torch.relu(logits[slot].float())) * allowed
        top = weights.topk(min(retriever.term_rule.top_k, len(weights)))
        for value, term in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            if value > 0:
                terms[term] = max(terms.get(term, 0.0), value)
    return NaiveText(np.stack(vectors), terms)


def _counted(retriever: DiffRetriever, one: NaiveText, text: str) -> NaiveText:
    """Return a passage whose term weights are multiplied by what its counts make of them, where the model says so."""
    if retriever.mean_words is None:
        return one
    words = retriever.content.words(text)
    pieces = retriever.content.pieces(words)
    factors = count_factors([pieces[word] for word in words], retriever.mean_words)
    return NaiveText(one.vectors, {term: weight * factors[term] for term, weight in one.terms.items()})


def disagreement(ours: Representations, theirs: list[NaiveText], least: float = 0.999) -> str | None:
    """Return what differs between our representations and the naive ones, None when they agree.

    Vectors must have a cosine of at least `least` in the mean, and the term weights of a text likewise.
    """
    if len(ours) != len(theirs):
        return f"{len(ours)} texts against {len(theirs)}"
    cosines = np.concatenate([(ours.vectors(i) * text.vectors).sum(1) for i, text in enumerate(theirs)])
    terms = np.zeros(ours.sparse.shape, dtype=np.float32)
    for row, text in enumerate(theirs):
        terms[row, list(text.terms)] = list(text.terms.values())
    mine = ours.sparse.toarray()
    norms = np.linalg.norm(mine, axis=1) * np.linalg.norm(terms, axis=1)
    of_terms = (mine * terms).sum(1) / np.maximum(norms, 1e-9)
    worst = min(float(cosines.mean()), float(of_terms[norms > 0].mean()) if (norms > 0).any() else 1.0)
    return None if worst >= least else f"mean cosine with the naive outputs is {worst:.4f}, at least {least} is wanted"
