from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from diffretriever.errors import InputError
from diffretriever.training.module import LOCAL
from diffretriever.training.stepping import Engine, take_step

ALL = {"dense": 1.0, "sparse": 0.5, "scores": 1.0, "vectors": 2.0, "words": 0.2, "terms": 4.0, "diversity": 0.3}
ALL |= {"denoising": 0.4, "parts": 1.0, "part_scores": 0.5}


def gradients(trainer, inputs, *, one_pass):
    torch.manual_seed(7)
    trainer.module.zero_grad()
    trainer.module.train()
    report = take_step(trainer.module, inputs, trainer.settings.loss, Engine(), one_pass=one_pass)
    return report, {n: p.grad.clone() for n, p in trainer.module.named_parameters() if p.grad is not None}


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("match_from", [0, 9])
def test_chunks_computed_twice_give_the_gradients_of_one_pass(make_trainer, match_from):
    """With dropout: what a chunk's first pass drops, its second pass drops as well."""
    loss = ALL | {"match_from": match_from}
    trainer = make_trainer(loss=loss, model={"dropout": 0.2}, optimisation={"chunk": 3})
    inputs = trainer.teacher.teach(trainer.train_dataset[0])
    assert len(inputs.chunks) == 6
    before, whole = gradients(trainer, inputs, one_pass=True)
    again, cached = gradients(trainer, inputs, one_pass=False)
    assert again == pytest.approx(before, rel=1e-6)
    assert_close(whole, cached)
    other, _ = gradients(trainer, inputs, one_pass=True)
    assert other.loss == before.loss
    torch.manual_seed(8)
    assert take_step(trainer.module, inputs, trainer.settings.loss, Engine(), one_pass=True).loss != before.loss


@pytest.fixture
def make_decoding(make_trainer, checkpoints):
    """A trainer of PromptReps multi, whose slots are the tokens of an answer."""

    def make(dropout=0.0, recomputed=False, slots=2, **loss):
        return make_trainer(
            model={
                "base": str(checkpoints / "tiny-qwen2"),
                "system": "promptreps",
                "slot_embeddings": False,
                "query_slots": slots,
                "passage_slots": slots,
                "prompt": None,
                "max_query_length": 120,
                "max_passage_length": 120,
                "dropout": dropout,
            },
            data={"group": 1},
            loss=dict.fromkeys(("scores", "vectors", "words", "terms"), 0.0) | loss,
            optimisation={"batch": 6, "gradient_checkpointing": recomputed},
        )

    return make


@pytest.mark.parametrize(("recomputed", "dropout"), [(True, 0.0), (False, 0.2), (True, 0.2)])
def test_decoded_answers_computed_twice_give_the_gradients_of_one_pass(make_decoding, recomputed, dropout):
    """The states of the first pass come from prompt and answer, as those of the second do."""
    trainer = make_decoding(dropout, recomputed)
    inputs = trainer.train_dataset[0]
    before, whole = gradients(trainer, inputs, one_pass=True)
    again, cached = gradients(trainer, inputs, one_pass=False)
    assert again == pytest.approx(before, rel=1e-6)
    assert_close(whole, cached)


def test_slots_after_the_end_of_an_answer_count_in_no_mean(make_decoding):
    trainer = make_decoding(slots=4)
    encoder, inputs = trainer.module.encoder, trainer.train_dataset[0]
    encoder.stop_ids = frozenset(range(0, encoder.vocabulary_size, 3))
    encoded = encoder.encode_passages(inputs.passages)
    slots = [torch.tensor(encoded.vectors(i)) for i in range(len(inputs.passages))]
    assert len({len(vectors) for vectors in slots}) > 1
    for chunk in (c for c in inputs.chunks if c.side == "passage"):
        pooled = torch.tensor(encoded.pooled[list(chunk.rows)])
        local = trainer.module(replace(chunk, teacher=pooled, aligned=True, diversity=True)).local.detach()
        assert float(local[LOCAL.index("vectors")]) == pytest.approx(0.0, abs=1e-4)
        cosines = sum(mean_cosine(slots[row]) for row in chunk.rows)
        assert float(local[LOCAL.index("diversity")]) == pytest.approx(cosines, abs=1e-4)
    report, _ = gradients(trainer, inputs, one_pass=True)
    assert report.slot_cosine == pytest.approx(sum(map(mean_cosine, slots)) / len(slots), abs=1e-4)


def mean_cosine(vectors):
    """The mean cosine between different ones of some unit vectors; 0 where there is one."""
    found = [float(a @ b) for a, b in combinations(vectors, 2)]
    return sum(found) / max(1, len(found))


@pytest.mark.parametrize("name", ["words", "parts", "part_scores", "diversity"])
def test_objectives_of_each_slot_are_refused_where_slots_are_decoded(make_decoding, name):
    with pytest.raises(InputError, match=rf"loss.{name} is 0.5 and asks something of every slot, but an answer"):
        make_decoding(**{name: 0.5})


def test_the_size_of_chunks_changes_nothing(make_trainer, tmp_path):
    found = []
    for chunk in (1, 8):
        trainer = make_trainer(loss=ALL, optimisation={"chunk": chunk}, output=str(tmp_path / str(chunk)))
        found.append(gradients(trainer, trainer.teacher.teach(trainer.train_dataset[0]), one_pass=False))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5, abs=1e-6)
    assert_close(found[0][1], found[1][1])


def test_the_gradient_is_that_of_the_reported_loss(make_trainer):
    """A small step along a direction changes the loss by the gradient in that direction."""
    trainer = make_trainer(loss=ALL, optimisation={"chunk": 8})
    inputs = trainer.teacher.teach(trainer.train_dataset[0])
    trainer.module.double()
    _, grads = gradients(trainer, inputs, one_pass=True)
    slots = trainer.module.slot_embeddings
    direction = torch.randn(slots.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    values = []
    for step in (-1e-3, 1e-3):
        with torch.no_grad():
            slots.add_(step * direction)
        values.append(gradients(trainer, inputs, one_pass=True)[0].loss)
        with torch.no_grad():
            slots.sub_(step * direction)
    slope = (values[1] - values[0]) / 2e-3
    assert slope == pytest.approx(float((grads["slot_embeddings"] * direction).sum()), rel=1e-2)


def test_the_gradient_reaches_every_slot_embedding(make_trainer):
    trainer = make_trainer(loss=ALL)
    _, grads = gradients(trainer, trainer.teacher.teach(trainer.train_dataset[0]), one_pass=True)
    norms = grads["slot_embeddings"].norm(dim=-1)
    assert (norms[0, :2] > 0).all()
    assert (norms[1] > 0).all()
    assert norms[0, 2] == 0


def test_a_head_that_no_objective_reads_is_not_trained(make_trainer):
    off = dict.fromkeys(("sparse", "words", "terms"), 0.0)
    trainer = make_trainer(loss=off)
    _, grads = gradients(trainer, trainer.teacher.teach(trainer.train_dataset[0]), one_pass=True)
    assert not any("predictions" in name for name in grads)
    assert {name for name, p in trainer.module.named_parameters() if p.requires_grad} == grads.keys()
