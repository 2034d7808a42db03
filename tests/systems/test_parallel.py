from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from diffretriever.encoder import Encoder
from diffretriever.errors import CheckpointError, InputError, WorkerError
from diffretriever.representations import Representations
from diffretriever.systems.opening import open_system
from diffretriever.systems.parallel import ParallelEncoder, devices_named
from tests.conftest import CHECKPOINTS, Inputs

MODEL = CHECKPOINTS / "tiny-dream"
TWO = ["cpu", "cpu"]


def opened() -> ParallelEncoder:
    return ParallelEncoder(MODEL, devices=TWO, dtype="float32", query_slots=2, passage_slots=4)


@pytest.fixture(scope="module")
def parallel() -> Iterator[ParallelEncoder]:
    """Give two workers that the tests share; a test that ends its workers opens its own."""
    with opened() as encoder:
        yield encoder


@pytest.fixture(scope="module")
def alone() -> Encoder:
    return open_system(MODEL, dtype="float32", device="cpu", query_slots=2, passage_slots=4)


def assert_same(found: Representations, wanted: Representations, *, bits: bool) -> None:
    assert found.provenance == wanted.provenance
    assert found.offsets.tolist() == wanted.offsets.tolist()
    tolerance = 0.0 if bits else 1e-6
    np.testing.assert_allclose(found.dense, wanted.dense, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.pooled, wanted.pooled, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.sparse.toarray(), wanted.sparse.toarray(), rtol=0, atol=10 * tolerance)


def test_chunks_come_in_order_and_equal_those_of_one_process(
    parallel: ParallelEncoder, alone: Encoder, inputs: Inputs
) -> None:
    # Of very different sizes, so that later ones are ready before earlier ones.
    chunks = [inputs.passages[:10] * 6, inputs.passages[10:11], [], *([p] for p in inputs.passages[11:])]
    found = list(parallel.encode_chunks(chunks, words=2))
    assert [len(f) for f in found] == [len(c) for c in chunks]
    for got, want in zip(found, alone.encode_chunks(chunks, words=2), strict=True):
        assert_same(got, want, bits=True)
        assert got.words is not None
        assert got.words.ids.tolist() == want.words.ids.tolist()


def test_texts_equal_those_of_one_process(parallel: ParallelEncoder, alone: Encoder, inputs: Inputs) -> None:
    assert isinstance(parallel, Encoder)
    assert (parallel.dim, parallel.vocabulary_size) == (alone.dim, alone.vocabulary_size)
    assert parallel.term(17) == alone.term(17)
    assert parallel.device == torch.device("cpu")
    texts = (inputs.passages * 8)[:150]
    assert_same(parallel.encode_passages(texts), alone.encode_passages(texts), bits=False)
    assert_same(parallel.encode_queries(inputs.queries), alone.encode_queries(inputs.queries), bits=True)
    assert_same(parallel.encode_queries("one query"), alone.encode_queries("one query"), bits=True)
    assert len(parallel.encode_passages([])) == 0


def test_no_more_is_read_than_keeps_the_workers_busy(parallel: ParallelEncoder, inputs: Inputs) -> None:
    read: list[int] = []

    def chunks() -> Iterator[list[str]]:
        for number in range(20):
            read.append(number)
            yield inputs.passages[number : number + 1]

    stream = parallel.encode_chunks(chunks())
    next(stream)
    assert len(read) == 4
    stream.close()
    # What was asked for and dropped does not turn up among later answers.
    assert len(parallel.encode_passages(inputs.passages[:3])) == 3


def test_an_error_comes_after_what_was_asked_before_it(parallel: ParallelEncoder, inputs: Inputs) -> None:
    stream = parallel.encode_chunks([inputs.passages, [7], inputs.passages[:2]])
    assert len(next(stream)) == len(inputs.passages)
    with pytest.raises(InputError, match="text 0 is int"):
        next(stream)
    assert len(parallel.encode_queries(["still there"])) == 1


def test_a_model_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "moon"}')
    with pytest.raises(CheckpointError, match="'moon', which has no row"):
        ParallelEncoder(tmp_path, devices=["cpu"])


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_named("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    for missing in ("moon", "cuda:2"):
        with pytest.raises(InputError, match=f"device is '{missing}'"):
            devices_named(f"cpu,{missing}")
        with pytest.raises(InputError, match=f"device is '{missing}'"):
            ParallelEncoder(MODEL, devices=["cpu", missing])
    with pytest.raises(InputError, match="write such as"):
        devices_named(" , ")
    with pytest.raises(InputError, match="at least one"):
        ParallelEncoder(MODEL, devices=[])
    with pytest.raises(InputError, match="either these or devices"):
        ParallelEncoder(MODEL, devices=TWO, device="cpu")


def test_all_stands_for_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_named("all") == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="no CUDA GPU"):
        devices_named("all")


def test_a_worker_that_is_killed_is_named(inputs: Inputs) -> None:
    encoder = opened()
    stream = encoder.encode_chunks([inputs.passages] * 50)
    next(stream)
    os.kill(encoder.process_ids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"the worker on cpu ended by signal SIGKILL.*--batch-tokens"):
        for _ in stream:
            pass
    assert encoder.process_ids == []
    with pytest.raises(WorkerError, match="closed"):
        encoder.encode_queries(["x"])
    stream = encoder.encode_chunks([inputs.passages] * 3)
    with pytest.raises(WorkerError, match="closed"):
        next(stream)


def test_chunks_are_not_waited_for_once_the_workers_are_closed(inputs: Inputs) -> None:
    encoder = opened()
    stream = encoder.encode_chunks([inputs.passages[:2]] * 3)
    next(stream)
    encoder.close()
    with pytest.raises(WorkerError, match="closed"):
        list(stream)
