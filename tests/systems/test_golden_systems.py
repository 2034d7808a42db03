"""Conformance of the other systems with the outputs of the paper's code on tiny random checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffretriever.backbones.decoding import decode
from diffretriever.prompted import PromptedEncoder
from diffretriever.systems.opening import open_system
from tests.conftest import CHECKPOINTS, GOLDEN, Inputs
from tests.test_golden import strongest, unit

POOLED = {"diffembed_dream": ("tiny-dream", "diffembed"), "repllama": ("tiny-llama", "repllama")}
PROMPTREPS = [("tiny-llama", 1), ("tiny-llama", 20), ("tiny-qwen2", 1), ("tiny-qwen2", 4)]


def load(folder: str, system: str, slots: int = 1) -> PromptedEncoder:
    return open_system(
        CHECKPOINTS / folder,
        system,  # type: ignore[arg-type]
        query_slots=slots,
        passage_slots=slots,
        protocol="paper",
        device="cpu",
        dtype="float32",
    )


def check_ids(model: PromptedEncoder, side: str, texts: list[str], gold: np.lib.npyio.NpzFile) -> None:
    for row, ids in enumerate(model.tokenise(texts, side)):
        real = gold["attention_mask"][row].astype(bool)
        assert list(model.frames[side].wrap(ids).ids) == gold["input_ids"][row][real].tolist()


@pytest.mark.parametrize("case", sorted(POOLED))
@pytest.mark.parametrize("side", ["query", "passage"])
def test_pooled_systems(case: str, side: str, inputs: Inputs) -> None:
    model = load(*POOLED[case])
    texts = inputs.queries if side == "query" else inputs.passages
    gold = np.load(GOLDEN / f"{case}_fp32_{side[0]}.npz")
    check_ids(model, side, texts, gold)
    got = model.encode_queries(texts) if side == "query" else model.encode_passages(texts)
    np.testing.assert_allclose(got.dense, gold["emb"], atol=1e-4)
    np.testing.assert_array_equal(got.pooled, got.dense)
    assert got.sparse.shape == (len(texts), 0)


@pytest.mark.parametrize(("folder", "slots"), PROMPTREPS)
@pytest.mark.parametrize("side", ["query", "passage"])
def test_promptreps(folder: str, slots: int, side: str, inputs: Inputs) -> None:
    model = load(folder, "promptreps", slots)
    texts = inputs.queries if side == "query" else inputs.passages
    gold = np.load(GOLDEN / f"promptreps_{folder}_K{slots}_fp32_{side[0]}.npz")
    check_ids(model, side, texts, gold)
    got = model.encode_queries(texts) if side == "query" else model.encode_passages(texts)
    assert np.diff(got.offsets).tolist() == [slots] * len(texts)
    terms = got.sparse.toarray()
    if slots == 1:
        np.testing.assert_allclose(got.dense, unit(gold["dense"]), atol=1e-4)
        # The golden weights are those before they are made whole numbers.
        assert np.abs(terms - 100 * gold["sparse"]).max() <= 1
        return
    # The paper's code keeps several positions in bf16: at most 2 ** -9 of a number is lost.
    vectors = got.dense.reshape(gold["repr_hidden"].shape)
    lengths = np.linalg.norm(gold["repr_hidden"], axis=-1, keepdims=True)
    np.testing.assert_allclose(vectors * lengths, gold["repr_hidden"], rtol=2**-8, atol=2e-3)
    want = strongest(gold["sparse_indices"], gold["sparse_values"], terms.shape)
    np.testing.assert_allclose(terms, want, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize(("folder", "slots"), [("tiny-llama", 20), ("tiny-qwen2", 4)])
def test_decoded_states_are_the_golden_ones_before_rounding(folder: str, slots: int, inputs: Inputs) -> None:
    """Our fp32 states, rounded to bf16 as the paper's code rounds them, equal the golden ones but for last bits."""
    model = load(folder, "promptreps", slots)
    gold = np.load(GOLDEN / f"promptreps_{folder}_K{slots}_fp32_p.npz")
    ids = torch.from_numpy(gold["input_ids"])
    real = torch.from_numpy(gold["attention_mask"]).bool()
    lengths = real.sum(1)
    right = torch.zeros_like(ids)
    for row, length in enumerate(lengths.tolist()):
        right[row, :length] = ids[row][real[row]]
    with torch.inference_mode():
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        answers = decode(model.backbone, right, mask, slots, model.stop_ids)  # type: ignore[attr-defined]
    rounded = answers.hidden.bfloat16().float().numpy()
    assert (rounded == gold["repr_hidden"]).mean() > 0.995
    assert np.abs(rounded - gold["repr_hidden"]).max() <= 2**-5
    assert answers.keep.all()
