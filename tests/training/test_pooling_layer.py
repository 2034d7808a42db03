from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffretriever import DiffRetriever
from diffretriever.errors import CheckpointError
from diffretriever.training.base import open_base
from diffretriever.training.model_settings import ModelSettings
from diffretriever.training.run import train
from tests.conftest import CHECKPOINTS

CPU = torch.device("cpu")
IDS = torch.tensor([[2, 8, 9, 10, 3], [2, 11, 3, 0, 0]])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def backbones(base):
    settings = {"base": str(base), "prompt": "plain"}
    return [open_base(ModelSettings(**settings, pooling_layer=p), CPU).backbone for p in (False, True)]


@torch.no_grad()
def test_the_layer_adds_an_average_of_the_states_below_to_each(base):
    plain, pooling = backbones(base)
    attention = pooling.model.bert.encoder.layer[-1].attention.self
    for linear in (attention.query, attention.key):
        torch.nn.init.zeros_(linear.weight)  # every position then looks at all alike
        torch.nn.init.zeros_(linear.bias)
    below, found = (b.hidden_states(IDS, MASK) for b in (plain, pooling))
    for row, length in enumerate((5, 3)):
        states = below[row, :length]
        wanted = F.layer_norm(states + 4 * states.mean(dim=0), states.shape[-1:])
        assert torch.allclose(found[row, :length], wanted, atol=1e-5)


@torch.no_grad()
def test_positions_come_near_the_mean_that_the_encoder_was_tuned_for(base):
    plain, pooling = backbones(base)
    means = plain.hidden_states(IDS, MASK)[0].mean(dim=0)
    near = [F.cosine_similarity(b.hidden_states(IDS, MASK)[0], means, dim=-1) for b in (plain, pooling)]
    assert near[1].min() > 0.9 > near[0].min()


def test_a_trained_model_has_the_layer_and_reads_as_it_was_trained(make_settings, make_trainer, tmp_path):
    folder = train(make_settings(model={"pooling_layer": True}, optimisation={"steps": 2}))
    loaded = DiffRetriever.from_pretrained(folder, dtype="float32")
    assert loaded.backbone.model.config.num_hidden_layers == 3
    again = make_trainer(model={"base": str(folder), "pooling_layer": False}, output=str(tmp_path / "again"))
    assert len(again.module.backbone.model.bert.encoder.layer) == 3
    again.module.encoder.slot_embeddings = again.module.slot_embeddings
    first, second = (e.encode_passages(["heart of the lung"], progress=False) for e in (loaded, again.module.encoder))
    np.testing.assert_allclose(first.dense, second.dense, atol=1e-5)


def test_other_families_are_refused():
    settings = ModelSettings(base=str(CHECKPOINTS / "tiny-dream"), pooling_layer=True)
    with pytest.raises(CheckpointError, match=r"for BERT encoders, and the base is a qwen2 model"):
        open_base(settings, CPU)
