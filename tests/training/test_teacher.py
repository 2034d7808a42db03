from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from diffretriever.errors import InputError
from diffretriever.systems.opening import open_system
from diffretriever.training.teacher import Teacher

# "the" stands in every text, "star" in two of four, "rain" in one.
SAMPLE = ["the star of", "the star", "the rain", "the"]
TEXT = "the star the rain the galaxy"


@pytest.fixture(scope="module")
def encoder(base):
    return open_system(str(base), "diffembed", device="cpu", dtype="float32")


def token_states(encoder, text):
    """The hidden states [L, D] of one text, and its tokens."""
    ids = encoder.frames["passage"].wrap(encoder.tokenise([text], "passage")[0]).ids
    row = torch.tensor([ids])
    return encoder.backbone.hidden_states(row, torch.ones_like(row, dtype=torch.bool))[0].detach(), ids


def test_a_token_counts_by_its_document_frequency_to_the_power_of_rarity(encoder):
    teacher = Teacher(encoder)
    teacher.weigh_tokens(SAMPLE, 0.5)
    tokenizer = encoder.backbone.tokenizer
    for word, held in {"the": 4, "star": 2, "rain": 1, "galaxy": 0}.items():
        idf = math.log(1 + (4 - held + 0.5) / (held + 0.5))
        token = tokenizer.encode([word], parse_special_tokens=False)[0][0]
        assert float(teacher.token_weights[token]) == pytest.approx(math.sqrt(idf), rel=1e-6), word


def test_the_means_over_a_text_and_its_parts_are_weighted(encoder):
    teacher = Teacher(encoder, parts={"query": 2, "passage": 2}, part_share=0.25)
    teacher.weigh_tokens(SAMPLE, 0.5)
    vectors, parts = teacher.encode([TEXT], "passage")
    hidden, ids = token_states(encoder, TEXT)
    weights = teacher.token_weights[list(ids)][:, None]
    half = len(ids) // 2
    assert len(ids) == 2 * half
    whole = (weights * hidden).sum(0) / weights.sum()
    torch.testing.assert_close(vectors[0], F.normalize(whole, dim=0), atol=1e-6, rtol=1e-5)
    for part, own in zip(parts[0], (slice(0, half), slice(half, None)), strict=True):
        mean = (weights[own] * hidden[own]).sum(0) / weights[own].sum()
        torch.testing.assert_close(part, F.normalize(0.25 * mean + 0.75 * whole, dim=0), atol=1e-6, rtol=1e-5)


def test_parts_of_passages_have_a_least_number_of_tokens(encoder):
    teacher = Teacher(encoder, parts={"query": 2, "passage": 2}, part_tokens=1000)
    for side, alike in (("passage", True), ("query", False)):
        vectors, parts = teacher.encode([TEXT], side)
        assert all(torch.allclose(part, vectors[0], atol=1e-5) is alike for part in parts[0]), side


def test_weights_of_rarity_0_change_nothing(encoder):
    plain, weighted = Teacher(encoder), Teacher(encoder)
    weighted.weigh_tokens(SAMPLE, 0.0)
    texts = [TEXT, *SAMPLE]
    torch.testing.assert_close(weighted.encode(texts, "query")[0], plain.encode(texts, "query")[0])


def test_padding_counts_nothing(encoder):
    teacher = Teacher(encoder, parts={"query": 2, "passage": 3})
    teacher.weigh_tokens(SAMPLE, 0.35)
    together = teacher.encode([TEXT, "rain"], "passage")
    for row, text in enumerate([TEXT, "rain"]):
        for both, alone in zip(together, teacher.encode([text], "passage"), strict=True):
            torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-5)


def test_only_a_mean_can_be_weighted(checkpoints):
    teacher = Teacher(open_system(str(checkpoints / "tiny-llama"), "repllama", device="cpu", dtype="float32"))
    with pytest.raises(InputError, match="averages over tokens, not repllama"):
        teacher.weigh_tokens(SAMPLE, 0.5)
