from __future__ import annotations

import errno
import gc
import json
import math
import os
import shutil
import weakref

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffretriever import open_system
from diffretriever.errors import CheckpointError, InputError
from diffretriever.folder_lock import FolderLock, FolderTakenError
from diffretriever.training.run import prepare, train
from diffretriever.training.saving import load_model
from diffretriever.training.stepping import Engine, take_step
from diffretriever.training.store import only_run
from diffretriever.training.trainer import StepDataset

BIASED_STEMS = {"terms": "stems", "term_bias": True, "term_counts": True}
TEXTS = ["bread of the dough. yeast", "piano", "the galaxy of the star. orbit orbit"]


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def stop_after(trainer, step):
    """Train to a step and leave everything as a killed process would."""

    def stopping(model, inputs, *rest):
        if trainer.state.global_step == step:
            raise KeyboardInterrupt
        return type(trainer).training_step(trainer, model, inputs, *rest)

    trainer.training_step = stopping
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_a_resumed_run_equals_an_uninterrupted_one(make_settings, tmp_path):
    whole = train(make_settings(model=BIASED_STEMS, output=str(tmp_path / "whole")))
    halves = make_settings(model=BIASED_STEMS, output=str(tmp_path / "halves"))
    stop_after(prepare(halves)[0], 5)
    assert [row["step"] for row in log_of(tmp_path / "halves")] == [1, 2, 3, 4, 5]
    resumed = train(halves)
    logs = [log_of(tmp_path / run) for run in ("whole", "halves")]
    assert [[row["step"], row["loss"]] for row in logs[0]] == [[row["step"], row["loss"]] for row in logs[1]]
    assert len(logs[0]) == 6
    for file in ("model.safetensors", "slots.safetensors", "terms.safetensors"):
        one, other = load_file(whole / file), load_file(resumed / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_of_a_finished_run_stays_in_memory(make_settings, monkeypatch):
    held = []

    def watched(*arguments, **options):
        trainer, about = prepare(*arguments, **options)
        held.extend(map(weakref.ref, (trainer, trainer.module, trainer.teacher.encoder.backbone)))
        return trainer, about

    monkeypatch.setattr("diffretriever.training.run.prepare", watched)
    gc.disable()  # or it may come by at the right time by chance
    try:
        train(make_settings())
        assert [reference() for reference in held] == [None] * 3
    finally:
        gc.enable()


def test_two_runs_do_not_write_one_folder(make_settings, tmp_path):
    settings = make_settings()
    with only_run(tmp_path / "run"), pytest.raises(CheckpointError, match=f"process {os.getpid()} is training in"):
        train(settings)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    train(settings)
    assert len(log_of(tmp_path / "run")) == 6


def test_the_first_process_keeps_the_folder_for_all(tmp_path, monkeypatch):
    with only_run(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with only_run(tmp_path):
            monkeypatch.delenv("RANK")
        # The second process neither took the lock nor gave it back.
        with pytest.raises(FolderTakenError, match=f"process {os.getpid()}"):
            FolderLock(tmp_path)
    FolderLock(tmp_path).release()


def test_a_file_system_without_locks_keeps_nobody_from_training(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        FolderLock(tmp_path)
    with only_run(tmp_path):
        assert "cannot be locked" in caplog.text


def test_a_run_keeps_the_newest_checkpoints_and_a_broken_one_is_not_used(make_settings, tmp_path):
    settings = make_settings(optimisation={"save_every": 1})
    train(settings)
    run = tmp_path / "run"
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    (run / "checkpoint-6" / "complete").unlink()
    (run / "checkpoint-6" / "optimizer.pt").write_bytes(b"cut o")
    before = load_file(run / "model" / "model.safetensors")
    after = load_file(train(settings) / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_a_user_put_beside_the_checkpoints_stays(make_settings, tmp_path):
    settings = make_settings(optimisation={"steps": 1})
    train(settings)
    run = tmp_path / "run"
    for copy in ("checkpoint-best", "checkpoint-1-copy"):  # whole, as a checkpoint is
        shutil.copytree(run / "checkpoint-1", run / copy)
    (run / "checkpoint-better").mkdir()
    (run / "checkpoint-notes.txt").write_text("mine", encoding="utf-8")
    (run / "checkpoint-2").mkdir()
    train(settings)
    assert {p.name for p in run.glob("checkpoint-*")} == {
        "checkpoint-1", "checkpoint-best", "checkpoint-1-copy", "checkpoint-better", "checkpoint-notes.txt",
    }  # fmt: skip


def test_checkpoints_of_another_program_are_neither_removed_nor_mixed_with(make_settings, tmp_path):
    foreign = tmp_path / "run" / "checkpoint-500"
    foreign.mkdir(parents=True)
    (foreign / "model.safetensors").write_bytes(b"somebody's")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-500 is a checkpoint of another program; give a new `output`"
    ):
        train(make_settings())
    assert (foreign / "model.safetensors").read_bytes() == b"somebody's"


def test_training_lowers_the_loss_and_moves_every_part(make_settings, tmp_path):
    settings = make_settings(optimisation={"steps": 40, "learning_rate": 1e-3, "head_learning_rate": 1e-2})
    trainer, _ = prepare(settings)
    before = {name: value.detach().clone() for name, value in trainer.module.state_dict().items()}
    trainer.train()
    rows = log_of(tmp_path / "run")
    for part in ("loss", "words", "terms", "vectors"):
        assert rows[-1][part] < rows[0][part], part
    after = trainer.module.state_dict()
    for part in ("slot_embeddings", "word_embeddings", "layer.1", "transform.dense.weight", "predictions.bias"):
        names = [name for name in before if part in name]
        assert names
        assert any(not torch.equal(before[name], after[name]) for name in names), part


def test_a_run_of_other_settings_is_refused(make_settings):
    train(make_settings())
    with pytest.raises(CheckpointError, match=r"loss.temperature was 0.02, now 0.5"):
        train(make_settings(loss={"temperature": 0.5}))


def test_a_run_whose_base_is_another_by_now_is_refused(make_settings, base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    settings = make_settings(model={"base": str(tmp_path / "base")}, optimisation={"steps": 1})
    train(settings)
    train(settings)
    weights = load_file(base / "model.safetensors")
    changed = {name: tensor + 0.1 for name, tensor in weights.items()}
    save_file(changed, str(tmp_path / "base" / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"data or base \(base_fingerprint was '\w{16}', now '\w{16}'\)"):
        train(settings)
    # Runs that were begun before this was recorded go on.
    facts = tmp_path / "run" / "run.json"
    about = json.loads(facts.read_text(encoding="utf-8"))
    del about["base_fingerprint"]
    facts.write_text(json.dumps(about), encoding="utf-8")
    train(settings)
    assert "base_fingerprint" in json.loads(facts.read_text(encoding="utf-8"))


def test_a_run_writes_what_made_it(make_settings, tmp_path):
    model = train(make_settings(optimisation={"steps": 2}))
    about = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (about["settings"]["seed"], about["steps"]) == (1, 2)
    assert len(about["data_sha256"]["pairs.parquet"]) == 64
    assert {"torch", "transformers", "python"} <= about["versions"].keys()
    assert json.loads((model / "training.json").read_text(encoding="utf-8")) == about
    row = log_of(tmp_path / "run")[0]
    assert row["learning_rate"] == pytest.approx(2e-3, rel=1.0)
    assert row["seconds"] > 0


def test_slots_that_start_as_a_word_learn_as_slowly_as_the_model(make_trainer):
    model = {"slot_start": "[CLS]", "slot_noise": 0.0, "slot_positions": "spread"}
    trainer = make_trainer(model=model)
    module = trainer.module
    words, ids = module.backbone.model.get_input_embeddings().weight, module.backbone.tokenizer
    wanted = words[ids.id_of("[CLS]")] - words[module.backbone.special.mask]
    assert torch.allclose(module.slot_embeddings, wanted.expand_as(module.slot_embeddings), atol=1e-6)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert rates[id(module.slot_embeddings)] == pytest.approx(2e-4)
    usual = make_trainer()
    rates = {id(p): group["lr"] for group in usual.create_optimizer().param_groups for p in group["params"]}
    assert rates[id(usual.module.slot_embeddings)] == pytest.approx(2e-3)
    with pytest.raises(CheckpointError, match="'no-such-item', which is neither auto nor random nor an item"):
        make_trainer(model={"slot_start": "no-such-item"})


def test_the_term_bias_starts_from_document_frequencies_and_is_kept(make_trainer, make_settings, tmp_path):
    trainer = make_trainer(model=BIASED_STEMS)
    module, builder = trainer.module, trainer.train_dataset._builder
    bias = module.backbone.term_bias.detach().clone()
    statistics = builder._targets.statistics
    ids = [module.backbone.tokenizer.id_of(word) for word in ("piano", "violin", "music")]
    wanted = [0.7 * statistics.idf(i) ** 0.5 for i in ids]
    np.testing.assert_allclose(torch.log1p(bias[ids]), wanted, rtol=1e-5)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert rates[id(module.backbone.term_bias)] == pytest.approx(2e-3)
    folder = train(make_settings(model=BIASED_STEMS))
    saved = load_file(folder / "terms.safetensors")["term_bias"].float()
    assert (saved[ids] - bias[ids]).abs().max() > 1e-4
    again = {"base": str(folder), "slot_embeddings": False, "term_bias": True}
    tuned = make_trainer(model=again, output=str(tmp_path / "again")).module
    assert torch.equal(tuned.backbone.term_bias.detach(), saved)
    assert tuned.encoder.settings.terms == "stems"
    assert tuned.encoder.mean_words == module.encoder.mean_words == round(statistics.mean_length, 1)
    assert tuned.backbone.term_bias.requires_grad
    with pytest.raises(InputError, match=r"model\.term_bias is on and no objective reads term weights"):
        make_settings(model=BIASED_STEMS, loss={"sparse": 0.0, "terms": 0.0})


def test_words_that_are_hardly_ever_said_start_lower_and_terms_do_not(make_trainer, tmp_path):
    models = {}
    for support in (1, 8):
        loss = {"word_support": support}
        trainer = make_trainer(model=BIASED_STEMS, loss=loss, output=str(tmp_path / str(support)))
        models[support] = trainer.module.backbone
    free, held = (models[s].head_bias.detach() for s in (1, 8))
    tokenizer = models[8].tokenizer
    # "music" is a slot's word in many of the sixty passages, "[SEP]" in none: log(0 + 1) - log(8).
    assert float((held - free)[tokenizer.id_of("music")]) == 0.0
    assert float((held - free)[tokenizer.id_of("[SEP]")]) == pytest.approx(-math.log(8), rel=1e-5)
    hidden, rows = torch.randn(2, 3, 32), torch.arange(23).expand(2, -1)
    torch.testing.assert_close(models[8].logits_of_rows(hidden, rows), models[1].logits_of_rows(hidden, rows))


def test_where_slots_stand_comes_from_the_base_unless_the_recipe_says(make_settings, make_trainer, tmp_path):
    assert not make_trainer().module.encoder.frames["query"].spread
    first = train(make_settings(model={"slot_positions": "spread"}, optimisation={"steps": 1}))
    given = {"base": str(first), "slot_embeddings": False}
    again = make_trainer(model=given, output=str(tmp_path / "again"))
    assert again.module.encoder.frames["query"].spread
    with pytest.raises(InputError, match="slot_positions is set; diffembed has no masked positions"):
        make_settings(model={**given, "slot_positions": "after", "system": "diffembed"})
    after = make_trainer(model={**given, "slot_positions": "after"}, output=str(tmp_path / "after"))
    assert not after.module.encoder.frames["query"].spread


@pytest.mark.parametrize("model", [{"slot_positions": "after"}, {"slot_positions": "spread"}, BIASED_STEMS])
@pytest.mark.parametrize("side", ["query", "passage"])
def test_the_retriever_computes_what_was_trained(make_trainer, tmp_path, side, model):
    trainer = make_trainer(optimisation={"steps": 3}, model=model)
    trainer.train()
    model = open_system(tmp_path / "run" / "checkpoint-3", dtype="float32", device="cpu")
    got = model.encode_queries(TEXTS) if side == "query" else model.encode_passages(TEXTS)
    examples = trainer.train_dataset._schedule.batch(0)[:3]
    examples = [e._replace(query=t, positive=t) for e, t in zip(examples, TEXTS, strict=True)]
    inputs = trainer.train_dataset._builder.build(0, examples)
    sparse = torch.zeros(3, model.vocabulary_size)
    for chunk in inputs.chunks:
        if chunk.side == side:
            with torch.no_grad():
                outputs = trainer.module(chunk)
            rows = list(chunk.rows)
            dense = got.dense.reshape(3, -1, model.dim)[rows]
            np.testing.assert_allclose(dense, outputs.dense.numpy(), atol=1e-5)
            for row, ids, weights in zip(rows, chunk.content, outputs.weights, strict=True):
                sparse[row, ids[ids >= 0]] = weights[ids >= 0]
    np.testing.assert_allclose(got.sparse.toarray(), sparse.numpy(), atol=1e-4)


def test_the_finished_model_is_half_precision_and_tied(make_settings):
    folder = train(make_settings(optimisation={"steps": 1}))
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        names = set(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.float16}
    assert "cls.predictions.decoder.weight" not in names
    settings = json.loads((folder / "retriever_config.json").read_text(encoding="utf-8"))
    assert (settings["query_slots"], settings["passage_slots"], settings["tuned"]) == (2, 3, True)
    assert "attn" not in (folder / "config.json").read_text(encoding="utf-8")


def test_weights_of_another_model_are_refused(make_trainer, base):
    with pytest.raises(CheckpointError, match="tensors do not fit"):
        load_model(make_trainer().module, base)


def test_a_base_of_another_digest_is_refused(make_settings):
    with pytest.raises(CheckpointError, match="the recipe expects 0000"):
        train(make_settings(model={"sha256": "0" * 64}))


def test_arguments_that_the_recipe_decides_are_refused(make_settings):
    with pytest.raises(InputError, match="sets max_steps, which the recipe decides"):
        train(make_settings(trainer={"max_steps": 3}))
    with pytest.raises(InputError, match="transformers refuses"):
        train(make_settings(trainer={"no_such_argument": 3}))


def test_the_teacher_is_never_trained_and_is_the_mean_of_all_tokens(make_trainer):
    trainer = make_trainer(optimisation={"steps": 2})
    teacher = trainer.teacher
    before, _ = teacher.encode(TEXTS, "passage")
    trainer.train()
    torch.testing.assert_close(teacher.encode(TEXTS, "passage")[0], before, rtol=0, atol=0)
    alone = torch.cat([teacher.encode([text], "passage")[0] for text in TEXTS])
    torch.testing.assert_close(before, alone, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(before.numpy(), teacher.encoder.encode_passages(TEXTS).dense, atol=1e-5)


SYSTEMS = [
    ("diffembed", "tiny-dream", {}),
    ("repllama", "tiny-llama", {}),
    ("promptreps", "tiny-qwen2", {"sparse": 1.0}),
    ("promptreps", "tiny-llama", {"sparse": 1.0}),
    ("diffretriever", "tiny-llada", {"sparse": 1.0, "denoising": 0.1}),
]


@pytest.mark.parametrize(("system", "checkpoint", "loss"), SYSTEMS)
def test_every_system_is_trained_by_the_same_code(make_settings, checkpoints, tmp_path, system, checkpoint, loss):
    several = system == "diffretriever" or (system, checkpoint) == ("promptreps", "tiny-llama")
    slots = {"query_slots": 2, "passage_slots": 2} if several else {}
    lengths = {"max_query_length": 120, "max_passage_length": 120}
    settings = make_settings(
        model={
            "base": str(checkpoints / checkpoint),
            "system": system,
            "slot_embeddings": False,
            "prompt": None,
            "query_slots": None,
            "passage_slots": None,
        }
        | slots
        | lengths,
        loss={"sparse": 0.0, "scores": 0.0, "vectors": 0.0, "words": 0.0, "terms": 0.0} | loss,
        data={"group": 1},
        optimisation={"steps": 2, "batch": 6},
    )
    trainer, _ = prepare(settings)
    first = trainer.train_dataset[0]

    def loss_of_first():
        return take_step(trainer.module, first, settings.loss, Engine(), one_pass=True).loss

    before = loss_of_first()
    trained = [p for p in trainer.module.parameters() if p.grad is not None]
    norm = torch.cat([p.grad.flatten() for p in trained]).norm()
    with torch.no_grad():
        for parameter in trained:
            parameter.sub_(parameter.grad * 1e-2 / norm)
    assert loss_of_first() < before
    trainer.module.zero_grad()
    trainer.train()
    model = open_system(tmp_path / "run" / "checkpoint-2", device="cpu")
    assert model.system == system
    scores = model.encode_queries(["the heart"]).pooled @ model.encode_passages(["lung of the heart", "piano"]).pooled.T
    assert np.isfinite(scores).all()


def test_layers_computed_again_give_the_same_gradients(make_trainer, tmp_path):
    found = []
    for again in (False, True):
        optimisation = {"gradient_checkpointing": again}
        trainer = make_trainer(optimisation=optimisation, output=str(tmp_path / str(again)))
        trainer.training_step(trainer.module, {"inputs": trainer.train_dataset[0]})
        found.append({name: p.grad for name, p in trainer.module.named_parameters()})
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-5, atol=1e-6)


def test_batches_made_ahead_are_the_same_ones_in_any_order(make_trainer):
    here = make_trainer().train_dataset
    ahead = StepDataset(here._schedule, here._builder, ahead=True)
    for step in (0, 1, 4, 5, 2):
        one, other = here[step], ahead[step]
        assert (one.step, one.queries, one.passages) == (other.step, other.queries, other.passages)
        assert all(torch.equal(a.batch.ids, b.batch.ids) for a, b in zip(one.chunks, other.chunks, strict=True))
