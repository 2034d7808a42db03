"""What the slots of an encoder say before any training, by the token they start as and where they stand.

    python benchmarks/slot_starts.py --passages 48

Every masked position has the embedding of one token of the vocabulary. Printed are cosines, means over the passages: of
the mean slot with the teacher's vector of the whole passage; of a slot with the teacher's vector of its own part and of
the other parts; of two slots; and of a slot with its own part after the text's mean was taken from both, which is above
0 only where slots know their parts.
"""

from __future__ import annotations

import argparse
from typing import get_args

import torch
import torch.nn.functional as F

from diffretriever.conventions import SlotPositions
from diffretriever.evaluation.collections import open_collection
from diffretriever.systems.opening import open_system
from diffretriever.training.base import open_base
from diffretriever.training.model_settings import ModelSettings
from diffretriever.training.module import build_module
from diffretriever.training.teacher import Teacher

TOKENS = ("[MASK]", "[CLS]", "[SEP]", "of", "the", "and", ",", ".", "document")
SLOTS, WORDS = 16, 75


def main() -> None:
    """Print one row per token and place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="a mean-pooling encoder, which is the teacher, too")
    parser.add_argument("--collection", default="scifact", help="folder in BEIR's layout, or scifact")
    parser.add_argument("--passages", type=int, default=48, help="the first so many, 75 words of each")
    parser.add_argument("--tokens", nargs="+", default=TOKENS)
    parser.add_argument("--pooling-layer", action="store_true", help="with `model.pooling_layer` of a recipe")
    arguments = parser.parse_args()
    passages = list(open_collection(arguments.collection).passages)[: arguments.passages]
    texts = [" ".join(p.text.split()[:WORDS]) for p in passages]
    encoder = open_system(arguments.model, "diffembed", device="cpu", dtype="float32")
    teacher = Teacher(encoder, parts={"query": SLOTS, "passage": SLOTS})
    whole, parts = teacher.encode(texts, "passage")
    if parts is None:
        raise AssertionError("a teacher of parts gives parts")
    more = ", a pooling layer" if arguments.pooling_layer else ""
    print(f"{len(texts)} passages, {arguments.model}{more}, {SLOTS} slots, float32")
    print("| token | stands | whole | own part | other parts | two slots | own part, centred |")
    print("|---|---|---|---|---|---|---|")
    for token in arguments.tokens:
        for place in get_args(SlotPositions):
            slots = _slots(arguments.model, token, place, texts, pooling_layer=arguments.pooling_layer)
            numbers = " | ".join(f"{n:.3f}" for n in _cosines(slots, whole, parts))
            print(f"| `{token}` | {place} | {numbers} |")


def _slots(
    model: str, token: str, place: SlotPositions, texts: list[str], *, pooling_layer: bool = False
) -> torch.Tensor:
    """Return the slots [N, K, D] of texts."""
    settings = ModelSettings(
        base=model,
        prompt="plain",
        query_slots=SLOTS,
        passage_slots=SLOTS,
        slot_embeddings=True,
        slot_start=token,
        slot_positions=place,
        slot_noise=0.0,
        pooling_layer=pooling_layer,
    )
    module = build_module(open_base(settings, torch.device("cpu")), settings, seed=0)
    module.encoder.slot_embeddings = module.slot_embeddings
    found = module.encoder.encode_passages(texts, progress=False)
    return torch.from_numpy(found.dense.copy()).float().view(len(texts), SLOTS, -1)


def _cosines(slots: torch.Tensor, whole: torch.Tensor, parts: torch.Tensor) -> tuple[float, ...]:
    mean = slots.mean(dim=1)
    products = slots @ parts.transpose(1, 2)
    own = products.diagonal(dim1=1, dim2=2)
    between = (slots @ slots.transpose(1, 2)).sum((1, 2)) - SLOTS
    centred = F.cosine_similarity(slots - mean[:, None], parts - parts.mean(dim=1, keepdim=True), dim=2)
    return (
        float(F.cosine_similarity(mean, whole, dim=1).mean()),
        float(own.mean()),
        float((products.sum((1, 2)) - own.sum(1)).mean()) / (SLOTS * (SLOTS - 1)),
        float(between.mean()) / (SLOTS * (SLOTS - 1)),
        float(centred.mean()),
    )


if __name__ == "__main__":
    main()
