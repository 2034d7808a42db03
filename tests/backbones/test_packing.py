from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch

from diffretriever.backbones import packing
from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.loading import load_backbone
from diffretriever.backbones.segments import Segments, attend
from diffretriever.sequences import Batch, MaskedSequence, collate
from tests.backbones.published import CONFIGS, native_model, spec_of, write

CPU = torch.device("cpu")
PACKING = ["a2d-qwen2", "a2d-qwen3", "bert", "dream", "llada", "llama", "qwen2", "qwen3"]
PADDING = sorted(set(CONFIGS) - set(PACKING))
LENGTHS = [40, 7, 23, 23, 31, 7]
SLOTS = 3


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    folder = tmp_path_factory.mktemp("families")
    return {
        name: load_backbone(write(name, folder / name, native_model(name)), device=CPU, dtype=torch.float32)
        for name in CONFIGS
    }


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    """Sequences of random tokens with three slots some places before their ends."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 1999, (n,), generator=generator).tolist() for n in lengths]
    return collate([MaskedSequence(tuple(r), len(r) - 5) for r in rows], SLOTS, pad_id=2001)


def alone(batch: Batch, row: int) -> Batch:
    length = batch.lengths[row]
    one = slice(row, row + 1)
    return Batch(batch.ids[one, :length], batch.mask[one, :length], batch.slots[one], (length,))


@pytest.mark.parametrize("name", PACKING)
def test_a_batch_equals_its_sequences_one_by_one(name: str, backbones: dict[str, Backbone]) -> None:
    backbone, batch = backbones[name], batch_of(LENGTHS)
    assert backbone.packs
    with torch.inference_mode():
        together = backbone.hidden_at(batch)
        for row in range(len(LENGTHS)):
            torch.testing.assert_close(together[row], backbone.hidden_at(alone(batch, row))[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_positions_that_the_model_is_told_count_on_every_path(name: str, backbones: dict[str, Backbone]) -> None:
    backbone = backbones[name]
    plain = batch_of(LENGTHS)
    told = tuple((n // 4, n // 3, n // 2) for n in LENGTHS)
    rows = [r[:n] for r, n in zip(plain.ids.tolist(), LENGTHS, strict=True)]
    batch = collate([MaskedSequence(tuple(r), len(r) - 5, t) for r, t in zip(rows, told, strict=True)], SLOTS, 2001)
    wanted = batch.slots[:, :, None].expand(-1, -1, backbone.hidden_size)
    with torch.inference_mode():
        found = backbone.hidden_at(batch)
        for padded in (False, True):
            full = backbone.hidden_states(batch.ids, batch.mask, positions=batch.positions, padded=padded)
            torch.testing.assert_close(found, full.gather(1, wanted), atol=1e-5, rtol=1e-5)
        assert (found - backbone.hidden_at(plain)).abs().amax() > 1e-3


@pytest.mark.parametrize("name", PACKING)
def test_a_changed_neighbour_moves_nothing(name: str, backbones: dict[str, Backbone]) -> None:
    backbone, batch = backbones[name], batch_of(LENGTHS)
    other = copy.deepcopy(batch)
    other.ids[2] = (other.ids[2] + 1) % 1999
    with torch.inference_mode():
        moved = (backbone.hidden_at(batch) - backbone.hidden_at(other)).abs().amax((1, 2))
    assert moved[2] > 1e-3
    assert moved[[0, 1, 3, 4, 5]].max() <= 1e-6


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("offset", [0, -1])
def test_states_at_some_positions_are_those_of_the_whole_model(
    name: str, offset: int, backbones: dict[str, Backbone]
) -> None:
    """Pruned == full, without padding == with padding, and both for masks that hide padding and that hide nothing."""
    backbone = backbones[name]
    slots = torch.randn(SLOTS, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    for batch in (batch_of(LENGTHS), batch_of([23, 23, 23])):
        wanted = (batch.slots + offset)[:, :, None].expand(-1, -1, backbone.hidden_size)
        with torch.inference_mode():
            full = backbone.hidden_states(batch.ids, batch.mask).gather(1, wanted)
            padded = backbone.hidden_states(batch.ids, batch.mask, padded=True).gather(1, wanted)
            torch.testing.assert_close(backbone.hidden_at(batch, offset=offset), full, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(full, padded, atol=1e-5, rtol=1e-5)
            moved = backbone.hidden_at(batch, slots, offset=offset)
            assert (moved - full).abs().max() > 1e-2
    plain = Backbone(backbone.model, backbone.spec, backbone.tokenizer, backbone.special, "")
    torch.testing.assert_close(plain.hidden_at(batch, slots, offset=offset), moved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PACKING)
def test_gradients_are_those_of_padded_sequences(name: str, backbones: dict[str, Backbone]) -> None:
    packed, batch = copy.deepcopy(backbones[name]).requires_grad_(True), batch_of(LENGTHS)
    padded = copy.deepcopy(packed)
    padded.model.config._attn_implementation = "sdpa"
    assert packed.packs
    assert not padded.packs
    gradients = []
    for backbone in (packed, padded):
        slots = torch.full((SLOTS, backbone.hidden_size), 0.1, requires_grad=True)
        hidden = backbone.hidden_at(batch, slots)
        (hidden * torch.linspace(0, 1, hidden.numel()).view_as(hidden)).sum().backward()
        parameters = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
        gradients.append({**parameters, "slots": slots.grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 10
    # Some gradients are 0 but for rounding, such as those of a key's bias, so each is held to the size of all.
    size = max(float(g.abs().max()) for g in gradients[1].values())
    for key, got in gradients[0].items():
        torch.testing.assert_close(got, gradients[1][key], atol=1e-5 * size, rtol=1e-3, msg=key)


def test_only_wanted_positions_reach_the_last_layer(backbones: dict[str, Backbone]) -> None:
    shapes: list[int] = []
    backbone = backbones["dream"]
    layers = backbone.model.base_model.layers
    handles = [m.mlp.register_forward_hook(lambda m, a, out: shapes.append(out.shape[1])) for m in layers]
    backbone.hidden_at(batch_of(LENGTHS))
    for handle in handles:
        handle.remove()
    assert shapes == [sum(LENGTHS), SLOTS * len(LENGTHS)]


@pytest.mark.parametrize("name", PADDING)
def test_who_cannot_pads_and_says_so_once(
    name: str, backbones: dict[str, Backbone], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not backbones[name].packs
    monkeypatch.setattr(packing, "_said", set())
    with caplog.at_level(logging.WARNING, logger="diffretriever"):
        for _ in range(2):
            assert not packing.enable_packing(spec_of(name), backbones[name].model)
    assert [name in r.getMessage() and "are padded" in r.getMessage() for r in caplog.records] == [True]


def test_sliding_windows_and_several_devices_are_padded(backbones: dict[str, Backbone]) -> None:
    model = copy.deepcopy(backbones["qwen2"].model)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert "sliding window" in str(packing.reason_to_pad(spec_of("qwen2"), model))
    model = copy.deepcopy(backbones["dream"].model)
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert "several devices" in str(packing.reason_to_pad(spec_of("dream"), model))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_chosen_attention_is_kept(attention: str, tmp_path: Path) -> None:
    backbone = load_backbone(write("bert", tmp_path, native_model("bert")), device=CPU, attention=attention)
    assert not backbone.packs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_within_segments(dtype: torch.dtype, differentiated: bool, causal: bool) -> None:
    lengths = (5, 5, 5, 2, 9, 9)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(h, sum(lengths), 8, generator=generator).to(dtype) for h in (4, 2, 2))
    q.requires_grad_(differentiated)
    got = attend(q, k, v, Segments(lengths, lengths), scale=0.3, causal=causal)
    of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = of[:, None] == of[None, :]
    if causal:
        seen = seen.tril()
    keys, values = (t.float().repeat_interleave(2, 0) for t in (k, v))
    scores = (q.float() @ keys.transpose(1, 2) * 0.3).masked_fill(~seen, -torch.inf)
    want = (torch.softmax(scores, -1) @ values).transpose(0, 1)
    atol = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.float(), want, atol=atol, rtol=0)


def test_causal_attention_of_some_positions_is_refused() -> None:
    q = torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match="every position's query"):
        attend(q, torch.zeros(1, 6, 4), torch.zeros(1, 6, 4), Segments((1, 1), (3, 3)), scale=1.0, causal=True)
