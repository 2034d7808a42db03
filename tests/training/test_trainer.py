from __future__ import annotations

import json

import pytest
import torch

from diffretriever.errors import CheckpointError
from diffretriever.training.trainer import rate


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.student.state_dict().items()}


def test_a_resumed_run_equals_an_uninterrupted_one(make_recipe, make_trainer, tmp_path):
    whole = make_trainer(make_recipe(output=str(tmp_path / "whole")))
    whole.run()
    stopped = make_trainer(make_recipe(output=str(tmp_path / "halves")))
    stopped.run(until=4)
    resumed = make_trainer(make_recipe(output=str(tmp_path / "halves")))
    resumed.run()
    assert resumed.step == whole.step == 6
    logs = [(tmp_path / run / "log.jsonl").read_text(encoding="utf-8").splitlines() for run in ("whole", "halves")]
    assert [json.loads(row)["step"] for row in logs[0]] == [json.loads(row)["step"] for row in logs[1]]
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0)


def test_training_lowers_the_loss_and_moves_every_part(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe(steps=40, learning_rate=1e-3, head_learning_rate=1e-2))
    before = weights(trainer)
    first = trainer.train_step()
    reports = [trainer.train_step() for _ in range(39)]
    assert reports[-1].words < first.words
    assert reports[-1].terms < first.terms
    assert reports[-1].vectors < first.vectors
    after = weights(trainer)
    for part in ("slot_embeddings", "word_embeddings", "layer.1", "transform.dense.weight", "predictions.bias"):
        names = [name for name in before if part in name]
        assert names
        assert any(not torch.equal(before[name], after[name]) for name in names), part


def test_the_gradient_reaches_every_slot_embedding(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe())
    loss, _ = trainer.loss(trainer.schedule.batch(0), 12)
    loss.backward()
    norms = trainer.student.slot_embeddings.grad.norm(dim=-1)
    assert (norms[0, :2] > 0).all()
    assert (norms[1] > 0).all()
    assert norms[0, 2] == 0


def test_the_teacher_is_never_trained(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe())
    ids = [[8, 9], [10]]
    before = trainer.teacher.encode(ids)
    trainer.train_step()
    torch.testing.assert_close(trainer.teacher.encode(ids), before, rtol=0, atol=0)


def test_the_teacher_is_the_mean_of_all_tokens_whatever_the_batch(make_recipe, make_trainer):
    teacher = make_trainer(make_recipe()).teacher
    together = teacher.encode([[8, 9, 10, 11], [10]])
    alone = torch.cat([teacher.encode([[8, 9, 10, 11]]), teacher.encode([[10]])])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))


def test_chunks_do_not_change_the_representations(make_recipe, make_trainer):
    student = make_trainer(make_recipe()).student
    texts = [[8, 9, 10], [11], [12, 13, 14, 15, 16], [8]]
    student.chunk = 1
    alone = student.hidden(texts, "passage")
    student.chunk = 4
    torch.testing.assert_close(student.hidden(texts, "passage"), alone, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_another_recipe_is_refused(make_recipe, make_trainer):
    make_trainer(make_recipe()).run(until=3)
    with pytest.raises(CheckpointError, match="another recipe"):
        make_trainer(make_recipe(temperature=0.5)).run()


def test_a_run_writes_what_made_it(make_recipe, make_trainer, tmp_path):
    make_trainer(make_recipe()).run(until=3)
    about = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert about["recipe"]["seed"] == 1
    assert len(about["data_sha256"]["pairs.parquet"]) == 64
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_the_rate_rises_then_falls_to_zero():
    rates = [rate(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)
