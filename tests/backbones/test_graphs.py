from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from diffretriever.backbones import graphs
from diffretriever.backbones.graphs import BUCKETS, Replay, record_calls
from diffretriever.backbones.loading import load_backbone
from diffretriever.sequences import MaskedSequence, collate
from tests.backbones.published import CONFIGS, native_model, write

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["dream", "bert", "qwen2"])
@pytest.mark.parametrize(("offset", "spread"), [(0, False), (-1, False), (0, True)])
def test_a_padded_and_repeated_sequence_has_the_same_states(
    name: str, offset: int, spread: bool, tmp_path: Path
) -> None:
    backbone = load_backbone(write(name, tmp_path, native_model(name)), device=CPU)
    added = torch.randn(2, 2, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    sequences = []
    for length, seed in ((20, 0), (31, 1), (20, 2), (60, 3), (BUCKETS[-1] + 1, 4)):
        ids = torch.randint(0, 1999, (length,), generator=torch.Generator().manual_seed(seed))
        told = (length // 3, length // 2) if spread else None
        sequences.append(collate([MaskedSequence(tuple(ids.tolist()), length - 5, told)], 2, 0))
    with torch.inference_mode():
        want = [backbone.hidden_at(b, a, offset=offset) for b in sequences for a in (None, *added)]
        recorded: list[int] = []

        def record(call):
            recorded.append(1)
            return record_calls(call)

        backbone.use_graphs(record)
        got = [backbone.hidden_at(b, a, offset=offset) for b in sequences for a in (None, *added)]
    assert len(recorded) == 4, "one per bucket, with and without added vectors"
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_training_and_batches_go_without_graphs_and_old_graphs_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(write("dream", tmp_path, native_model("dream")), device=CPU)
    recorded: list[Replay] = []
    backbone.use_graphs(lambda call: recorded.append(record_calls(call)) or recorded[-1])
    one, two = (collate([MaskedSequence(tuple(range(20)), 10)] * n, 2, 0) for n in (1, 2))
    backbone.hidden_at(one)
    with torch.inference_mode():
        backbone.hidden_at(two)
    assert not recorded
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 2)
    with torch.inference_mode():
        for slots in (1, 2, 3, 1):
            backbone.hidden_at(collate([MaskedSequence(tuple(range(20)), 10)], slots, 0))
    assert len(recorded) == 4


def sequence(length: int, seed: int):
    ids = torch.randint(1, 1999, (length,), generator=torch.Generator().manual_seed(seed))
    return collate([MaskedSequence(tuple(ids.tolist()), length - 5)], 2, 0)


def test_threads_do_not_see_each_others_sequences(tmp_path: Path) -> None:
    backbone = load_backbone(write("dream", tmp_path, native_model("dream")), device=CPU)
    batches = [sequence(20 + seed % 12, seed) for seed in range(40)]

    def states(number: int) -> torch.Tensor:
        with torch.inference_mode():
            return backbone.hidden_at(batches[number])

    want = [states(number) for number in range(len(batches))]
    backbone.use_graphs(record_calls)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(states, [*range(len(batches))] * 4))
    for one, other in zip(got, want * 4, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_no_length_beyond_the_learned_positions_is_padded_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "bert", {**CONFIGS["bert"], "max_position_embeddings": 70})
    backbone = load_backbone(write("bert", tmp_path, native_model("bert")), device=CPU)
    backbone.use_graphs(record_calls)
    with torch.inference_mode():
        graphed = backbone.hidden_at(sequence(70, 0))
        backbone.graphs = None
        torch.testing.assert_close(graphed, backbone.hidden_at(sequence(70, 0)), atol=1e-5, rtol=1e-5)


def test_a_copied_model_records_its_own_graphs(tmp_path: Path) -> None:
    backbone = load_backbone(write("dream", tmp_path, native_model("dream")), device=CPU)
    backbone.use_graphs(record_calls)
    with torch.inference_mode():
        before = backbone.hidden_at(sequence(20, 0))
        other = copy.deepcopy(backbone)
        for weight in other.parameters():
            weight.mul_(0.5)
        assert not torch.allclose(other.hidden_at(sequence(20, 0)), before)
        torch.testing.assert_close(backbone.hidden_at(sequence(20, 0)), before)
