from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffretriever.backbones.sources import FolderSource
from diffretriever.errors import CorpusError, InputError
from diffretriever.studies.shapes import RandomSource
from diffretriever.training.estimate import activation_bytes, estimate_run, hollow_module, step_flops
from diffretriever.training.recipes import read_recipe
from diffretriever.training.run import prepare
from tests.conftest import CHECKPOINTS

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
MSMARCO = [path for path in RECIPES if path.stem.endswith("msmarco")]
TINY = {"dream": "tiny-dream", "llada": "tiny-llada", "qwen2.5": "tiny-qwen2", "llama3": "tiny-llama"}
WITH_TEACHER = ("mini", "matched")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows in the layout of MS MARCO, and of pairs."""
    folder = tmp_path_factory.mktemp("rows")
    passages = [
        {"docid": str(i), "title": "", "text": f"the orbit of planet number {i} around the sun"} for i in range(20)
    ]
    tevatron = [
        {
            "query_id": str(i),
            "query": f"planet {i}",
            "positive_passages": [passages[i]],
            "negative_passages": passages[10:],
        }
        for i in range(10)
    ]
    pairs = [{"query": f"planet {i}", "positive": passages[i]["text"]} for i in range(10)]
    for name, records in (("tevatron", tevatron), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return folder


def small(path, rows, base):
    """The settings of a recipe with a tiny base, short batches and other files; all else as it is."""
    changes = [f"model.base={base}", "model.sha256=null", f"data.folder={rows}", "optimisation.batch=8"]
    if path.stem in WITH_TEACHER:
        return [*changes, "data.sources=[{path: pairs.jsonl}]", f"teacher.base={base}", "optimisation.steps=4"]
    return [*changes, "data.sources=[{path: tevatron.jsonl, format: tevatron}]", "data.negatives=3"]


def base_of(path, base):
    return next((CHECKPOINTS / tiny for key, tiny in TINY.items() if key in path.stem), base)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_read_and_estimated(path, rows, base):
    read_recipe(path)  # as it is
    settings = read_recipe(path, small(path, rows, base_of(path, base)))
    found = estimate_run(settings, time_steps=False)
    assert found.rows == 10
    assert found.steps == (4 if path.stem in WITH_TEACHER else 2)
    assert 0 < found.trainable <= found.parameters
    assert (found.trainable < found.parameters / 2) == (settings.model.lora is not None)
    assert found.tokens.computed >= found.tokens.queries + found.tokens.passages > found.tokens.longest
    assert found.memory.optimiser == 8 * found.trainable
    assert found.step_seconds > 0


def test_the_systems_are_matched():
    read = {path.stem: read_recipe(path) for path in MSMARCO}
    assert len(read) == 8
    ours = read["dream-7b-msmarco"]
    for settings in read.values():
        assert settings.data == ours.data
        assert settings.optimisation == ours.optimisation
        assert settings.model.lora == ours.model.lora
        assert (settings.loss.dense, settings.loss.temperature) == (1.0, 0.01)
        assert (settings.model.max_query_length, settings.model.max_passage_length) == (512, 512)
    assert {settings.model.system for settings in read.values()} == {
        "diffretriever",
        "diffembed",
        "repllama",
        "promptreps",
    }
    assert (ours.data.negatives, ours.optimisation.batch, ours.optimisation.learning_rate) == (15, 128, 1e-4)


def test_seven_billion_parameters_are_counted_without_memory_for_them(rows):
    path = next(p for p in MSMARCO if p.stem == "dream-7b-msmarco")
    settings = read_recipe(path, small(path, rows, "dream-7b"))
    found = estimate_run(settings, RandomSource("dream-7b", torch.device("cpu"), torch.float32, 1))
    assert found.parameters == 7_615_616_512
    assert found.trainable == 40_370_176
    assert found.memory.weights == pytest.approx(2 * found.parameters, rel=0.02)
    assert found.memory.activations < found.other_memory.activations
    assert not found.timed


def test_parameters_are_those_of_the_run(make_settings):
    settings = make_settings(teacher=None, data={"group": 1}, loss={"scores": 0.0, "vectors": 0.0})
    found = estimate_run(settings, time_steps=False)
    trainer, _ = prepare(settings)
    assert found.parameters == sum(p.numel() for p in trainer.module.parameters())
    assert found.trainable == sum(p.numel() for p in trainer.module.parameters() if p.requires_grad)
    batch = trainer.train_dataset._schedule.batch(0)
    inputs = trainer.train_dataset._builder.build(0, batch)
    own = sum(sum(chunk.batch.lengths) for chunk in inputs.chunks)
    assert found.tokens.queries + found.tokens.passages == pytest.approx(own, rel=0.3)


def test_real_steps_of_a_small_model_are_timed_and_nothing_stays(make_settings, tmp_path):
    found = estimate_run(make_settings())
    assert found.timed
    assert 0 < found.step_seconds < 60
    assert not (tmp_path / "run").exists()


def test_activations_are_about_what_autograd_keeps(make_settings):
    """The estimate against the bytes of all distinct tensors that the layers save for the backward pass."""
    base = str(CHECKPOINTS / "tiny-dream")
    settings = make_settings(model={"base": base, "attention": "sdpa", "slot_embeddings": False}, teacher=None,
                             data={"group": 1}, loss={"scores": 0.0, "vectors": 0.0})  # fmt: skip
    from diffretriever.training.base import open_base

    backbone = open_base(settings.model, torch.device("cpu")).backbone
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    kept = {}

    def keep(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(10, 1000, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = backbone.hidden_states(ids, torch.ones_like(ids).bool(), padded=True)
    hidden.sum().backward()
    found = activation_bytes(backbone.model.config, 256, 4, recompute=False, number=4, eager=False)
    assert 0.6 < found / sum(kept.values()) < 1.6


def test_flops_count_passes(make_settings):
    settings = make_settings(teacher=None, data={"group": 1}, loss={"scores": 0.0, "vectors": 0.0})
    tokens = estimate_run(settings, time_steps=False).tokens
    assert step_flops(settings, 1000, tokens) == pytest.approx(6000 * tokens.computed)
    twice = make_settings(teacher=None, data={"group": 1}, loss={"scores": 0.0, "vectors": 0.0},
                          optimisation={"one_pass": False, "gradient_checkpointing": True},
                          model={"lora": {"merge": True}})  # fmt: skip
    assert step_flops(twice, 1000, tokens) == pytest.approx(8000 * tokens.computed)


def test_what_is_missing_is_named(make_settings, rows, tmp_path):
    path = MSMARCO[0]
    with pytest.raises(CorpusError, match=r"set data\.folder"):
        estimate_run(read_recipe(path, [f"model.base={CHECKPOINTS / 'tiny-dream'}", f"data.folder={tmp_path}"]))
    named = [*small(path, rows, CHECKPOINTS / "tiny-dream"), "model.lora.targets=[c_attn]"]
    with pytest.raises(InputError, match="c_attn name no layer"):
        estimate_run(read_recipe(path, named), time_steps=False)


def test_a_hollow_module_has_the_frames_of_the_real_one(make_settings, base):
    settings = make_settings()
    hollow, real = hollow_module(settings, FolderSource(base)), prepare(settings)[0].module
    assert hollow.encoder.frames == real.encoder.frames
    assert {p.device.type for p in hollow.backbone.parameters()} == {"meta"}
