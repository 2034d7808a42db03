from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffretriever import DiffRetriever, open_system
from diffretriever.errors import CheckpointError, InputError
from diffretriever.training.base import open_base
from diffretriever.training.lora import add_lora, load_adapter, merged_tensors
from diffretriever.training.model_settings import LoraSettings, ModelSettings
from diffretriever.training.module import build_module
from diffretriever.training.run import prepare, train
from diffretriever.training.saving import load_model, save_model
from tests.conftest import CHECKPOINTS

CPU = torch.device("cpu")
TEXTS = ["The tilt of the earth causes the seasons.", "bread", "Every violin has four strings and a bow."]
FAMILIES = ["tiny-dream", "tiny-llada"]


def adapted(name, seed=0, **lora):
    """A module whose adapters do something: new ones have an update of zero."""
    settings = ModelSettings(
        base=str(CHECKPOINTS / name), query_slots=2, passage_slots=3, slot_embeddings=True, lora=LoraSettings(**lora)
    )
    base = open_base(settings, CPU)
    torch.manual_seed(seed)  # PEFT draws its first weights from torch's own generator
    add_lora(base.backbone, settings.lora, settings.base)
    module = build_module(base, settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def encoded(model):
    with torch.no_grad():
        made = model.encode_passages(TEXTS)
    return made.dense, made.sparse.toarray()


@pytest.fixture(scope="module", params=FAMILIES)
def module(request):
    found = adapted(request.param)
    found.encoder.slot_embeddings = found.slot_embeddings
    return found


@pytest.mark.parametrize("merge", [False, True])
def test_adapters_and_merged_weights_compute_what_was_trained(module, tmp_path, merge):
    save_model(module, tmp_path / "model", merge=merge)
    assert (tmp_path / "model" / "adapter_config.json").is_file() != merge
    assert (tmp_path / "model" / "model.safetensors").is_file() == merge
    loaded = DiffRetriever.from_pretrained(tmp_path / "model", dtype="float32", device="cpu")
    assert loaded.provenance.query_slots == 2
    for got, want in zip(encoded(loaded), encoded(module.encoder), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    plain = DiffRetriever.from_pretrained(
        str(module.backbone.model.peft_config["default"].base_model_name_or_path), query_slots=2, passage_slots=3
    )
    assert np.abs(encoded(plain)[0] - encoded(module.encoder)[0]).max() > 1e-2


def test_a_merged_model_saved_again_is_the_same(module, tmp_path):
    save_model(module, tmp_path / "first", merge=True)
    loaded = DiffRetriever.from_pretrained(tmp_path / "first", dtype="float32", device="cpu")
    loaded.save_pretrained(tmp_path / "second")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dream_and_llada_adapt_layers_of_the_same_names_and_no_head():
    found = {}
    for name in FAMILIES:
        module = adapted(name, r=4)
        trained = [n for n, p in module.named_parameters() if p.requires_grad and n != "slot_embeddings"]
        assert all(".lora_" in n for n in trained)
        found[name] = {n.partition("layers.")[2] for n in trained}
        assert "lm_head.weight" in merged_tensors(module.backbone.model)
    assert found["tiny-dream"] == found["tiny-llada"]
    layers = {n.split(".")[-4] for n in found["tiny-dream"]}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_head_and_the_base_stay_as_they_were(module, tmp_path):
    base = open_base(ModelSettings(base=module.backbone.model.peft_config["default"].base_model_name_or_path), CPU)
    merged = merged_tensors(module.backbone.model)
    before = base.backbone.model.state_dict()
    assert merged.keys() == before.keys()
    moved = {name for name in before if not torch.equal(merged[name], before[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # raised by PEFT itself
def test_peft_itself_reads_the_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    module = adapted("tiny-dream")
    save_model(module, tmp_path / "adapter")
    base = open_base(ModelSettings(base=str(CHECKPOINTS / "tiny-dream")), CPU).backbone.model
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=False).merge_and_unload()
    ours = merged_tensors(module.backbone.model)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(tensor, ours[name], atol=1e-6, rtol=1e-6)


def test_scale_and_defaults_are_the_papers():
    lora = LoraSettings()
    assert (lora.r, lora.alpha, lora.dropout) == (16, 64, 0.05)
    module = adapted("tiny-dream", r=8, alpha=16)
    layer = module.backbone.model.get_submodule("model.layers.0.self_attn.q_proj")
    want = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.get_delta_weight("default"), want)


@pytest.mark.parametrize(("target", "message"), [("lm_head", "vocabulary head"), ("no_proj", "no layer ends so")])
def test_the_head_and_unknown_layers_are_refused(target, message):
    with pytest.raises(InputError, match=message):
        adapted("tiny-dream", targets=(target,))


def test_adapters_of_another_rank_are_refused(tmp_path):
    save_model(adapted("tiny-dream", r=4), tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"is \[4, 176\], expected \[16, 176\]"):
        load_model(adapted("tiny-dream"), tmp_path / "model")
    other = adapted("tiny-dream", r=4, targets=("q_proj",))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_adapter(other.backbone.model, tmp_path / "model")


def lora_run(make_settings, output, **changes):
    model = {"base": str(CHECKPOINTS / "tiny-dream"), "prompt": None, "max_query_length": 96, "max_passage_length": 128}
    loss = {"scores": 0.0, "vectors": 0.0, "words": 0.0, "terms": 0.0}
    return make_settings(
        output=str(output),
        model={**model, "slot_embeddings": False, "lora": {"r": 4, **changes}},
        teacher=None,
        data={"group": 1},
        loss=loss,
        optimisation={"steps": 4, "save_every": 2, "batch": 4, "learning_rate": 1e-3},
    )


def test_a_run_with_adapters_resumes_to_the_same_weights(make_settings, tmp_path):
    whole = train(lora_run(make_settings, tmp_path / "whole"))
    settings = lora_run(make_settings, tmp_path / "cut")
    trainer, _ = prepare(settings)

    def stopping(model, inputs, *rest):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return type(trainer).training_step(trainer, model, inputs, *rest)

    trainer.training_step = stopping
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert {p.name for p in (tmp_path / "cut" / "checkpoint-2").glob("*.safetensors")} == {"adapter_model.safetensors"}
    cut = train(settings)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(float(tensor.abs().max()) > 0 for name, tensor in one.items() if "lora_B" in name)
    assert len(open_system(cut).encode_queries(["the river"])) == 1


def test_a_base_without_a_head_is_only_written_merged(make_settings, base, tmp_path):
    lora = {"model": {"lora": {"r": 4}}, "optimisation": {"steps": 1}}
    with pytest.raises(InputError, match="no vocabulary head"):
        train(make_settings(**lora))
    lora["model"]["lora"]["merge"] = True
    model = train(make_settings(**lora))
    assert json.loads((model / "config.json").read_text())["model_type"] == "bert"
    assert len(open_system(model).encode_queries(["the river"])) == 1
