"""Losses, scores and gradients of one batch against those of the paper's code (tests/golden/README.md)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diffretriever.backbones.weights import native_name
from diffretriever.training import losses
from diffretriever.training.base import open_base
from diffretriever.training.batch import SIDES
from diffretriever.training.building import BatchBuilder
from diffretriever.training.drawing import Example
from diffretriever.training.gathering import World
from diffretriever.training.module import build_module
from diffretriever.training.recipes import build
from diffretriever.training.settings import TrainingSettings
from diffretriever.training.stepping import Engine, take_step

CASES = {
    "dream_kq4_kp4": ("tiny-dream", 4, 4),
    "dream_kq4_kp16": ("tiny-dream", 4, 16),
    "llada1_kq1_kp1": ("tiny-llada", 1, 1),
    "llada1_kq4_kp4": ("tiny-llada", 4, 4),
}


class Case:
    """The batch of one golden file, as our code sees it."""

    def __init__(self, name, golden, sparse=1.0):
        checkpoint, query_slots, passage_slots = CASES[name]
        model = {"base": str(golden / "checkpoints" / checkpoint), "protocol": "paper"}
        model |= {"query_slots": query_slots, "passage_slots": passage_slots}
        raw = {
            "model": model,
            "data": {"sources": [{"path": "none"}]},
            "loss": {"sparse": sparse, "mask_duplicates": False},
            "optimisation": {"batch": 4, "chunk": 6},
        }
        self.settings = build(TrainingSettings, raw, "")
        self.module = build_module(open_base(self.settings.model, torch.device("cpu")), self.settings.model, 1)
        self.expected = np.load(golden / f"train_{name}_fp32.npz")
        self.numbers = json.loads((golden / "train_losses.json").read_text(encoding="utf-8"))
        batch = json.loads((golden / "train_batch_text.json").read_text(encoding="utf-8"))
        examples = [Example(b["query"], b["passages"][0], tuple(b["passages"][1:])) for b in batch]
        self.inputs = BatchBuilder(self.settings, self.module, World(), None).build(0, examples)

    def step(self, one_pass):
        return take_step(self.module, self.inputs, self.settings.loss, Engine(), one_pass=one_pass)

    def representations(self):
        """Return per side the vectors before normalisation, [N, K, D], and term weights, [N, V]."""
        found = {}
        for side in SIDES:
            chunks = [c for c in self.inputs.chunks if c.side == side]
            count = sum(len(c.rows) for c in chunks)
            weights = torch.zeros(count, self.module.backbone.vocabulary_size)
            dense = torch.zeros(count, chunks[0].batch.slots.shape[1], self.module.encoder.dim)
            with torch.no_grad():
                for chunk in chunks:
                    rows = list(chunk.rows)
                    outputs = self.module(chunk)
                    dense[rows] = outputs.dense
                    for row, ids, own in zip(rows, chunk.content, outputs.weights, strict=True):
                        weights[row, ids[ids >= 0]] = own[ids >= 0]
            found[side] = dense, weights
        return found


@pytest.mark.parametrize("name", CASES)
def test_token_ids_representations_and_scores(name, golden):
    case = Case(name, golden)
    expected = {key: torch.from_numpy(case.expected[key]) for key in case.expected.files}
    found = case.representations()
    for side, letter in zip(SIDES, "qp", strict=True):
        mask = expected[f"{side}_attention_mask"].bool()
        rows = [row[m].tolist() for row, m in zip(expected[f"{side}_input_ids"], mask, strict=True)]
        for chunk in case.inputs.chunks:
            for place, row in enumerate(chunk.rows if chunk.side == side else ()):
                assert chunk.batch.ids[place][chunk.batch.mask[place]].tolist() == rows[row]
        dense, weights = found[side]
        unit = torch.nn.functional.normalize(expected[f"{letter}_repr"], dim=-1)
        torch.testing.assert_close(dense, unit, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(weights, expected[f"{letter}_sparse"], atol=1e-4, rtol=1e-4)
    (q_dense, q_weights), (p_dense, p_weights) = found["query"], found["passage"]
    torch.testing.assert_close(losses.maxsim(q_dense, p_dense), expected["maxsim"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(q_weights @ p_weights.T, expected["sparse_scores"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradient_norms(name, one_pass, golden):
    case = Case(name, golden)
    report = case.step(one_pass)
    expected = case.numbers[f"{name}_fp32_sw1.0"]
    assert report.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert report.dense == pytest.approx(expected["loss_dense"], rel=1e-4)
    assert report.sparse == pytest.approx(expected["loss_sparse"], rel=1e-4)
    gradients = {n: p.grad for n, p in case.module.backbone.model.named_parameters()}
    for published, norm in expected["grad_norms"].items():
        ours = gradients[native_name(case.module.backbone.spec, published)].norm().item()
        assert ours == pytest.approx(norm, rel=1e-4), published


def test_the_dense_loss_alone(golden):
    case = Case("dream_kq4_kp4", golden, sparse=0.0)
    assert case.step(True).loss == pytest.approx(case.numbers["dream_kq4_kp4_fp32_sw0.0"]["loss"], rel=1e-4)
