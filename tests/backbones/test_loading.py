from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from diffretriever.backbones import loading
from diffretriever.backbones.loading import load_backbone
from diffretriever.backbones.specs import spec_for
from diffretriever.errors import AttentionError, CheckpointError, InputError, blaming
from tests.backbones.published import CONFIGS, native_model, published_tensors, spec_of, write

FAMILIES = sorted(CONFIGS)
CPU = torch.device("cpu")


def token_ids(rows: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(0, 1999, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_and_logits_equal_the_native_model(name: str, tmp_path: Path) -> None:
    native = native_model(name)
    backbone = load_backbone(write(name, tmp_path, native), device=CPU)
    ids = token_ids()
    mask = torch.ones_like(ids, dtype=torch.bool)
    attention = spec_of(name).attention
    reference_mask: torch.Tensor | None = None
    if attention != "causal" and name not in ("bert", "modernbert"):
        reference_mask = torch.ones(2, 1, 40, 40, dtype=torch.bool)
        if attention == "block":
            reference_mask[:, :, :32, 32:] = False
    with torch.inference_mode():
        want = native(input_ids=ids, attention_mask=reference_mask, output_hidden_states=False)
        got = backbone.logits(backbone.hidden_states(ids, mask))
    torch.testing.assert_close(got, want.logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_text_gives_the_same_vector_in_any_batch(name: str, tmp_path: Path) -> None:
    backbone = load_backbone(write(name, tmp_path, native_model(name)), device=CPU)
    ids = token_ids(4, 40)
    lengths = [40, 7, 23, 31]
    mask = torch.arange(40)[None] < torch.tensor(lengths)[:, None]
    with torch.inference_mode():
        together = backbone.hidden_states(ids, mask)
        for row, length in enumerate(lengths):
            alone = backbone.hidden_states(ids[row : row + 1, :length], mask[row : row + 1, :length])
            torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["dream", "llada", "bert"])
def test_bf16_batches_agree_to_its_precision(name: str, tmp_path: Path) -> None:
    backbone = load_backbone(write(name, tmp_path, native_model(name)), device=CPU, dtype=torch.bfloat16)
    ids = token_ids(4, 40)
    mask = torch.arange(40)[None] < torch.tensor([40, 7, 23, 31])[:, None]
    with torch.inference_mode():
        together = backbone.hidden_states(ids, mask)[1, :7].float()
        alone = backbone.hidden_states(ids[1:2, :7], mask[1:2, :7])[0].float()
    assert torch.cosine_similarity(together, alone, dim=-1).min() > 0.99


def test_block_attention_looks_back_and_not_ahead(tmp_path: Path) -> None:
    backbone = load_backbone(write("llada2_moe", tmp_path, native_model("llada2_moe")), device=CPU)
    ids = token_ids(1, 70)
    other = ids.clone()
    other[0, 40] += 1
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.inference_mode():
        moved = (backbone.hidden_states(ids, mask) - backbone.hidden_states(other, mask)).abs().amax(-1)[0]
    assert moved[:32].max() == 0
    assert moved[32:40].min() > 0
    assert moved[41:].max() > 0


@pytest.mark.parametrize("name", ["dream", "llada"])
def test_causal_by_accident_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(name, tmp_path, native_model(name))
    monkeypatch.setattr(loading, "set_direction", lambda model, spec: None)
    monkeypatch.setattr("diffretriever.backbones.backbone.attention_mask", lambda spec, mask, *_: mask.long())
    with pytest.raises(AttentionError, match="attention is causal, the row says full"):
        load_backbone(folder, device=CPU)


def test_full_by_accident_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("qwen2", tmp_path, native_model("qwen2"))
    full = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    monkeypatch.setattr("diffretriever.backbones.backbone.attention_mask", lambda *_: full)
    with pytest.raises(AttentionError, match="attention is full, the row says causal"):
        load_backbone(folder, device=CPU)


def test_remote_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    folder = write("dream", tmp_path, native_model("dream"))
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    assert load_backbone(folder, device=CPU).spec.name == "dream"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llada", "model.transformer.blocks.1.ff_out.weight"),
        ("llada", "model.transformer.ff_out.weight"),
        ("llada2_moe", "model.layers.2.mlp.experts.5.up_proj.weight"),
        ("llada2_moe", "model.layers.0.attention.query_key_value.weight"),
        ("bert", "bert.encoder.layer.0.output.dense.bias"),
    ],
)
def test_a_missing_tensor_is_named(name: str, tensor: str, tmp_path: Path) -> None:
    native = native_model(name)
    tensors = published_tensors(name, native)
    del tensors[tensor]
    folder = write(name, tmp_path, native, tensors)
    with pytest.raises(CheckpointError, match="is missing") as caught:
        load_backbone(folder, device=CPU)
    layer = tensor.split(".")[3] if name == "llada" and "blocks" in tensor else tensor.split(".")[2]
    assert layer in str(caught.value) or "lm_head" in str(caught.value)


def test_an_encoder_without_vocabulary_head_is_explained(tmp_path: Path) -> None:
    native = native_model("bert")
    tensors = {k: v for k, v in published_tensors("bert", native).items() if not k.startswith("cls.")}
    with pytest.raises(CheckpointError, match="no vocabulary head"):
        load_backbone(write("bert", tmp_path, native, tensors), device=CPU)


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    native = native_model("dream")
    tensors = published_tensors("dream", native) | {"model.layers.0.extra.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'model\.layers\.0\.extra\.weight'"):
        load_backbone(write("dream", tmp_path, native, tensors), device=CPU)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    native = native_model("dream")
    tensors = published_tensors("dream", native)
    tensors["model.norm.weight"] = torch.ones(31)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[31\], the config asks for \[32\]"):
        load_backbone(write("dream", tmp_path, native, tensors), device=CPU)


def test_sharded_weights(tmp_path: Path) -> None:
    native = native_model("dream")
    folder = write("dream", tmp_path, native)
    whole = load_backbone(folder, device=CPU)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for shard, part in enumerate((names[::2], names[1::2])):
        file = f"model-{shard + 1:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, str(folder / file))
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    ids = token_ids()
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.inference_mode():
        sharded = load_backbone(folder, device=CPU)
        torch.testing.assert_close(sharded.hidden_states(ids, mask), whole.hidden_states(ids, mask))
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_backbone(folder, device=CPU)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors.*missing"):
        load_backbone(folder, device=CPU)


def test_damaged_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_backbone(tmp_path, device=CPU)
    folder = write("dream", tmp_path / "m", native_model("dream"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt9"}))
    with pytest.raises(CheckpointError, match="gpt9"):
        load_backbone(folder, device=CPU)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_backbone(folder, device=CPU)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_backbone(folder, device=CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        load_backbone(folder, device=CPU)


def test_a_config_that_the_native_class_does_not_compute(tmp_path: Path) -> None:
    folder = write("llada", tmp_path, native_model("llada"))
    config = json.loads((folder / "config.json").read_text()) | {"alibi": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="alibi is True; only False"):
        load_backbone(folder, device=CPU)


def test_eager_attention_agrees_with_sdpa(tmp_path: Path) -> None:
    folder = write("dream", tmp_path, native_model("dream"))
    ids = token_ids()
    mask = torch.arange(40)[None] < torch.tensor([[40], [11]])
    with torch.inference_mode():
        eager = load_backbone(folder, device=CPU, attention="eager").hidden_states(ids, mask)
        sdpa = load_backbone(folder, device=CPU, attention="sdpa").hidden_states(ids, mask)
    torch.testing.assert_close(eager[mask], sdpa[mask], atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="attention is 'magic'"):
        load_backbone(folder, device=CPU, attention="magic")


def test_device_map(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    folder = write("dream", tmp_path, native_model("dream"))
    ids = token_ids()
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.inference_mode():
        spread = load_backbone(folder, device=CPU, device_map={"": "cpu"}).hidden_states(ids, mask)
        whole = load_backbone(folder, device=CPU).hidden_states(ids, mask)
    torch.testing.assert_close(spread, whole)


def test_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    one = load_backbone(write("bert", tmp_path / "1", native_model("bert", seed=1)), device=CPU)
    same = load_backbone(write("bert", tmp_path / "2", native_model("bert", seed=1)), device=CPU)
    other = load_backbone(write("bert", tmp_path / "3", native_model("bert", seed=2)), device=CPU)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_blocks_never_get_flash_attention(tmp_path: Path) -> None:
    """It has no mask of blocks: attention would be full without a word."""
    cuda = torch.device("cuda")
    assert loading._attention_implementation("auto", spec_for("llada2_moe"), cuda, torch.bfloat16) == "sdpa"
    with pytest.raises(InputError, match="attends in blocks, which flash attention cannot"):
        load_backbone(write("llada2_moe", tmp_path, native_model("llada2_moe")), attention="flash_attention_2")


def test_blocks_that_look_ahead_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("llada2_moe", tmp_path, native_model("llada2_moe"))
    monkeypatch.setattr(
        "diffretriever.backbones.backbone.attention_mask", lambda spec, mask, *_: mask[:, None, None, :]
    )
    with pytest.raises(AttentionError, match="attention is full, the row says block"):
        load_backbone(folder, device=CPU)


def test_models_may_be_opened_in_threads_at_once(tmp_path: Path) -> None:
    """The method of torch that is replaced while a model is built is there again afterwards, whoever ends first."""
    folder = write("bert", tmp_path, native_model("bert"))
    before = torch.nn.Module.register_parameter
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: load_backbone(folder, device=CPU), range(8)))
    assert torch.nn.Module.register_parameter is before
    states = [backbone.model.state_dict() for backbone in opened]
    assert all(torch.equal(tensor, states[0][name]) for state in states for name, tensor in state.items())


def test_what_other_threads_build_meanwhile_is_theirs() -> None:
    with loading._parameters_on_meta(), ThreadPoolExecutor(1) as pool:
        assert torch.nn.Linear(2, 2).weight.is_meta
        assert not pool.submit(torch.nn.Linear, 2, 2).result().weight.is_meta


def test_a_tensor_that_comes_twice_is_named(tmp_path: Path) -> None:
    folder = write("llada", tmp_path, native_model("llada"))
    published = load_file(folder / "model.safetensors")
    published["lm_head.weight"] = torch.zeros_like(published["model.transformer.ff_out.weight"])
    save_file(published, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight'\) is given twice; remove one of its files"):
        load_backbone(folder, device=CPU)


@pytest.mark.parametrize("theta", [1e6, None])
@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
def test_rotary_scaling_is_that_of_transformers(kind: str, key: str, theta: float | None, tmp_path: Path) -> None:
    folder = write("qwen2", tmp_path, native_model("qwen2"))
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"], config["rope_theta"]
    plain = config if theta is None else config | {"rope_theta": theta}
    scaling = {key: kind, "factor": 4.0} | ({"original_max_position_embeddings": 16} if kind == "yarn" else {})
    # Longer than the model was made for, where "dynamic" begins to scale.
    plain = plain | {"max_position_embeddings": 16}
    ids = token_ids()
    states = []
    for values in (plain, plain | {"rope_scaling": scaling}):
        (folder / "config.json").write_text(json.dumps(values))
        native = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        backbone = load_backbone(folder, device=CPU, dtype=torch.float32)
        with torch.inference_mode():
            states.append(backbone.hidden_states(ids, torch.ones_like(ids).bool()))
            torch.testing.assert_close(states[-1], native(input_ids=ids).last_hidden_state, atol=2e-5, rtol=1e-4)
    assert (states[0] - states[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("dream", {"hidden_size": "32"}, r"hidden_size is '32', not a whole number above 0"),
        ("dream", {"num_attention_heads": 0}, r"num_attention_heads is 0"),
        ("llada", {"embedding_size": -1}, r"vocab_size is -1"),
        ("dream", {"num_hidden_layers": None}, r"no Qwen2Config can be made of its values"),
        ("dream", {"hidden_act": "moon"}, r"no model can be built of its values: KeyError: 'moon'"),
        ("dream", {"rope_scaling": {"type": "moon"}}, r"KeyError: 'moon'; restore the file"),
        ("dream", {"rope_scaling": "moon"}, r"no Qwen2Config can be made of its values"),
        ("dream", {"rope_theta": "x"}, r"no model can be built of its values: TypeError"),
    ],
)
def test_a_config_of_odd_values_is_named(name: str, changed: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path, native_model(name))
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        load_backbone(folder, device=CPU)


@pytest.mark.parametrize("role", ["mask", "eos", "pad"])
def test_a_special_token_beyond_the_vocabulary_is_refused(role: str, tmp_path: Path) -> None:
    folder = write("bert", tmp_path, native_model("bert"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {f"{role}_token_id": 99999}))
    with pytest.raises(CheckpointError, match=rf"the id of the {role} token is 99999, .* has 2048 rows"):
        load_backbone(folder, device=CPU)
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": -1}))
    assert load_backbone(folder, device=CPU).special.pad == 2001


def test_tensors_of_experts_and_of_fused_layers_that_do_not_fit(tmp_path: Path) -> None:
    native = native_model("llada2_moe")
    tensors = published_tensors("llada2_moe", native)
    expert = "model.layers.1.mlp.experts.{}.up_proj.weight"
    beyond = tensors | {expert.format(8): tensors[expert.format(3)].clone()}
    with pytest.raises(CheckpointError, match=r"experts\.8\.up_proj\.weight is of expert 8, the config asks for 8"):
        load_backbone(write("llada2_moe", tmp_path, native, beyond), device=CPU)
    fused = "model.layers.1.attention.query_key_value.weight"
    short = tensors | {fused: tensors[fused][:-3].clone()}
    with pytest.raises(CheckpointError, match=r"query_key_value\.weight has shape \[61, 32\].* asks for \[64, 32\]"):
        load_backbone(write("llada2_moe", tmp_path, native, short), device=CPU)


def test_weights_that_say_nothing_about_attention_are_named_first(tmp_path: Path) -> None:
    native = native_model("dream")
    tensors = published_tensors("dream", native)
    whole = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=r"weight holds int8 numbers: quantised weights are not read"):
        load_backbone(write("dream", tmp_path, native, whole), device=CPU)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=r"hidden states are the same whatever the tokens are"):
        load_backbone(write("dream", tmp_path, native, zeros), device=CPU)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
    with pytest.raises(CheckpointError, match=r"hidden states are not finite \(computed in float32\)"):
        load_backbone(write("dream", tmp_path, native, tensors), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(), KeyboardInterrupt(), CheckpointError("its own")])
def test_what_is_no_fault_of_a_file_is_raised_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, blaming("x.gguf: not readable"):
        raise error
    assert caught.value is error
