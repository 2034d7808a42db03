from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffretriever.backbones.loading import load_backbone
from diffretriever.errors import CheckpointError
from tests.backbones.published import native_model, spec_of, write
from tests.conftest import CHECKPOINTS

CPU = torch.device("cpu")


def states(folder: Path, adapter: Path | None) -> torch.Tensor:
    ids = torch.arange(30)[None] + 40
    with torch.inference_mode():
        return load_backbone(folder, device=CPU, adapter=adapter).hidden_states(ids, torch.ones_like(ids).bool())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # raised by PEFT itself
def test_merging_equals_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    native = native_model("dream")
    base = write("dream", tmp_path / "base", native)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=list(spec_of("dream").lora_targets))
    adapted = peft.get_peft_model(native, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    backbone = load_backbone(base, device=CPU, adapter=tmp_path / "adapter")
    ids = torch.arange(20)[None] + 100
    with torch.inference_mode():
        want = adapted(input_ids=ids, attention_mask=torch.ones(1, 1, 20, 20, dtype=torch.bool)).logits
        got = backbone.logits(backbone.hidden_states(ids, torch.ones_like(ids).bool()))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_the_two_layers_called_ff_out(tmp_path: Path) -> None:
    """In LLaDA "ff_out" names a block's own layer and the vocabulary head; each update must reach its own."""
    adapter = load_file(CHECKPOINTS / "tiny-llada-lora-k4" / "adapter_model.safetensors")
    assert "base_model.model.model.transformer.ff_out.lora_A.weight" in adapter
    base = load_backbone(CHECKPOINTS / "tiny-llada", device=CPU)
    merged = load_backbone(CHECKPOINTS / "tiny-llada", device=CPU, adapter=CHECKPOINTS / "tiny-llada-lora-k4")
    prefix = "base_model.model.model.transformer."
    for published, native in (("ff_out", "lm_head"), ("blocks.2.ff_out", "model.layers.2.mlp.down_proj")):
        update = adapter[f"{prefix}{published}.lora_B.weight"] @ adapter[f"{prefix}{published}.lora_A.weight"]
        before = base.model.get_submodule(native).weight
        after = merged.model.get_submodule(native).weight
        torch.testing.assert_close(after - before, update.float() * 2, atol=1e-5, rtol=1e-3)


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINTS / "tiny-dream-lora-k4", tmp_path / "adapter"))


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    plain = states(CHECKPOINTS / "tiny-dream", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = 16 / 8**0.5
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    stabilised = states(CHECKPOINTS / "tiny-dream", folder)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": scale * 8}))
    assert not torch.allclose(plain, stabilised, atol=1e-3)
    torch.testing.assert_close(states(CHECKPOINTS / "tiny-dream", folder), stabilised, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"peft_type": "IA3"}, "'IA3'; only LORA"), ({"use_dora": True}, "use_dora, which is not supported")],
)
def test_other_adapters_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        states(CHECKPOINTS / "tiny-dream", folder)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != key}, r"q_proj' has lora_B alone"),
        (tensors | {key: torch.zeros(8, 63)}, r"q_proj' is 64 x 63.*\[64, 64\]"),
        (tensors | {"base_model.model.lm.weight": torch.zeros(1)}, "unexpected tensor"),
        (tensors | {k.replace("layers.0", "layers.9"): v.clone() for k, v in tensors.items()}, r"names .*layers\.9"),
    ):
        save_file(changed, str(file))
        with pytest.raises(CheckpointError, match=message):
            states(CHECKPOINTS / "tiny-dream", folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        states(CHECKPOINTS / "tiny-dream", folder)
