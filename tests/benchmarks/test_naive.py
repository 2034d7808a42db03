from __future__ import annotations

import naive
import pytest

from diffretriever.checkpoint import RetrieverSettings
from diffretriever.retriever import DiffRetriever
from diffretriever.studies.shapes import random_backbone
from tests.conftest import Inputs


@pytest.fixture(scope="module", params=["mini", "tiny-dream"])
def retriever(request: pytest.FixtureRequest) -> DiffRetriever:
    if request.param == "mini":
        return DiffRetriever.from_pretrained("mini", device="cpu")
    settings = RetrieverSettings(query_slots=4, passage_slots=4, tuned=True)
    return DiffRetriever(random_backbone(request.param), settings)


def test_the_naive_way_gives_the_same_numbers(retriever: DiffRetriever, inputs: Inputs) -> None:
    texts = inputs.passages[:10]
    found = naive.encode(retriever, texts)
    assert naive.disagreement(retriever.encode_passages(texts), found, least=0.99999) is None
    assert "texts against" in str(naive.disagreement(retriever.encode_passages(texts[:3]), found))
    assert "mean cosine" in str(naive.disagreement(retriever.encode_passages(texts[::-1]), found))
    assert retriever.backbone.packs, "left as it was"
