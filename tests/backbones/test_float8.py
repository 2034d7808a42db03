from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.float8 import quantise_float8, require_float8
from diffretriever.backbones.loading import load_backbone
from diffretriever.errors import InputError, MissingExtraError
from diffretriever.retriever import DiffRetriever
from tests.backbones.published import native_model, write
from tests.conftest import CHECKPOINTS, Inputs

CPU = torch.device("cpu")
MODEL = CHECKPOINTS / "tiny-dream"
with_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs the extra float8")


def loaded(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Backbone:
    return load_backbone(write(name, folder, native_model(name)), device=CPU, dtype=dtype)


@with_torchao
@pytest.mark.parametrize("name", ["dream", "llada", "bert"])
def test_the_layers_are_rounded_and_nothing_else(name: str, tmp_path: Path) -> None:
    backbone = loaded(name, tmp_path)
    ids = torch.randint(0, 1999, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.inference_mode():
        weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
        before = backbone.hidden_states(ids, mask).float()
        count = quantise_float8(backbone)
        after = backbone.hidden_states(ids, mask).float()
        # Of e4m3 with random weights, which is as bad as it gets.
        assert 0.97 < torch.cosine_similarity(before, after, dim=-1).mean() < 1
        moved = 0
        for key, parameter in backbone.model.named_parameters():
            now = parameter.dequantize() if hasattr(parameter, "dequantize") else parameter
            off = (now.float() - weights[key].float()).abs()
            largest = weights[key].float().abs().amax(-1, keepdim=True)
            # Three bits of mantissa, below the row's greatest number.
            assert (off <= weights[key].float().abs() / 16 + largest / 2**14 + 1e-6).all(), key
            moved += bool(off.any())
            assert not off.any() or ("layer" in key and weights[key].dim() == 2), key
        assert moved == count > 5
        assert backbone.logits(after.bfloat16()).dtype == torch.bfloat16
        rows = backbone.logits_of_rows(after.bfloat16(), ids[:, :4])
        same = backbone.logits(after.bfloat16()).gather(2, ids[:, None, :4].expand(3, 20, 4))
        torch.testing.assert_close(rows, same, atol=1e-2, rtol=0.02)
    assert (backbone.dtype, backbone.dtype_name) == (torch.bfloat16, "float8")
    assert backbone.packs


@with_torchao
def test_a_retriever_says_that_its_weights_are_float8(tmp_path: Path, inputs: Inputs) -> None:
    rounded = DiffRetriever.from_pretrained(MODEL, dtype="float8", device="cpu")
    plain = DiffRetriever.from_pretrained(MODEL, dtype="bfloat16", device="cpu")
    assert rounded.provenance.dtype == "float8"
    assert plain.provenance.dtype == "bfloat16"
    one, other = (model.encode_passages(inputs.passages).pooled for model in (rounded, plain))
    assert (one * other).sum() / ((one**2).sum() * (other**2).sum()) ** 0.5 > 0.99
    assert (one != other).any()
    with pytest.raises(InputError, match="rounded to float8 cannot be saved"):
        rounded.save_pretrained(tmp_path)


@with_torchao
def test_float8_starts_from_bf16(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"these are torch\.float32"):
        quantise_float8(loaded("bert", tmp_path, torch.float32))


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match=r"the package 'torchao' is needed for float8 weights: .*\[float8\]"):
        DiffRetriever.from_pretrained(MODEL, dtype="float8", device="cpu")


def test_hardware_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(InputError, match=r"A100 has compute capability 8\.0 .* use bfloat16"):
        require_float8(torch.device("cuda", 0))
    with pytest.raises(InputError, match="got mps"):
        require_float8(torch.device("mps"))
