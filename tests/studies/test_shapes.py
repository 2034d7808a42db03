from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffretriever import DiffRetriever
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.errors import InputError
from diffretriever.studies.shapes import SHAPES, random_backbone
from diffretriever.systems.promptreps import PromptReps

#: Weights of the published models, from their cards.
PARAMETERS = {
    "dream-7b": 7.62e9,
    "llada-8b": 8.02e9,
    "qwen2.5-7b": 7.62e9,
    "llama3-8b": 8.03e9,
    "smollm2-135m": 134.5e6,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_have_the_published_number_of_weights(name):
    import transformers

    from diffretriever.backbones.loading import native_config
    from diffretriever.backbones.specs import spec_for

    spec = spec_for(SHAPES[name]["model_type"])
    with torch.device("meta"):
        model = getattr(transformers, spec.architecture)(native_config(spec, dict(SHAPES[name]), Path(name)))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PARAMETERS[name], rel=0.005)


#: What makes a shape small, in both families' words.
NARROW = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 32, "vocab_size": 31000,
    "d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 32, "embedding_size": 31000,
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_can_be_loaded(name, monkeypatch):
    shape = {key: NARROW.get(key, value) for key, value in SHAPES[name].items()}
    monkeypatch.setattr("diffretriever.studies.shapes.SHAPES", {name: shape})
    backbone = random_backbone(name)
    assert backbone.vocabulary_size == 31000
    assert backbone.model.config.tie_word_embeddings == (name == "smollm2-135m")


def test_a_random_backbone_encodes_and_depends_on_its_seed_alone():
    settings = RetrieverSettings(query_slots=4, passage_slots=4, tuned=True)
    first, again, other = (
        DiffRetriever(random_backbone("tiny-dream", seed=seed), settings).encode_passages(["some words"])
        for seed in (1, 1, 2)
    )
    assert first.dense.shape == (4, 64)
    assert (first.dense == again.dense).all()
    assert not (first.dense == other.dense).all()
    assert first.provenance.fingerprint == again.provenance.fingerprint != other.provenance.fingerprint


def test_a_causal_shape_decodes():
    encoder = PromptReps(random_backbone("tiny-qwen2"), RetrieverSettings(query_slots=3, passage_slots=3))
    assert encoder.encode_queries(["some words"]).dense.shape[1] == 64


def test_unknown_shapes_are_named():
    with pytest.raises(InputError, match="no shape 'gpt-9'; choose one of dream-7b"):
        random_backbone("gpt-9")
