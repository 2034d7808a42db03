"""Random sequences of writes and searches, against a dictionary."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from diffretriever.corpus import Passage
from diffretriever.errors import PassageNotFoundError
from diffretriever.index import Equals, Index
from diffretriever.index.exact.store import ExactStore
from diffretriever.scoring import maxsim, sparse_dot
from tests.index.hashing import HashEncoder
from tests.index.places import backend_of, collection
from tests.index.qdrant_server import Server

IDS = ["a", "b", "c", "é", "日", "f", "g"]
TEXTS = st.lists(st.sampled_from(["sun", "moon", "tide", "axis", "star"]), max_size=4).map(" ".join)
METADATA = st.fixed_dictionaries({}, optional={"n": st.integers(0, 2), "s": st.sampled_from(["x", "y"])})
PASSAGES = st.lists(
    st.builds(Passage, st.sampled_from(IDS), TEXTS, st.just(""), METADATA), max_size=4, unique_by=lambda p: p.passage_id
)
ENCODER = HashEncoder()


class Machine(RuleBasedStateMachine):
    kind: str
    server: Server

    @initialize()
    def create(self) -> None:
        self.rest = ExitStack()
        if self.kind in ("edge", "exact"):
            self.place: str | Path = Path(self.rest.enter_context(tempfile.TemporaryDirectory())) / "index"
        else:
            self.place = self.rest.enter_context(collection(self.kind, self.server))
        self.index = Index.create(self.place, ENCODER, backend=backend_of(self.kind))
        self.model: dict[str, Passage] = {}

    @rule(passages=PASSAGES, batch_size=st.integers(1, 3))
    def add(self, passages: list[Passage], batch_size: int) -> None:
        assert self.index.add(passages, batch_size=batch_size) == len(passages)
        self.model |= {p.passage_id: p for p in passages}

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=3))
    def delete(self, ids: list[str]) -> None:
        if set(ids) <= set(self.model):
            assert self.index.delete(ids) == len(set(ids))
            self.model = {i: p for i, p in self.model.items() if i not in ids}
        else:
            with pytest.raises(PassageNotFoundError):
                self.index.delete(ids)

    @rule(passage_id=st.sampled_from(IDS), metadata=METADATA)
    def set_metadata(self, passage_id: str, metadata: dict[str, int | str]) -> None:
        if passage_id in self.model:
            self.index.set_metadata({passage_id: metadata})
            old = self.model[passage_id]
            self.model[passage_id] = Passage(passage_id, old.text, old.title, dict(metadata))

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = Index.open(self.place, ENCODER)

    @rule(query=TEXTS, value=st.sampled_from([None, 0, 1]), k=st.integers(1, 8))
    def search(self, query: str, value: int | None, k: int) -> None:
        candidates = [p for p in self.model.values() if value is None or p.metadata.get("n") == value]
        where = None if value is None else Equals("n", value)
        queries, passages = ENCODER.encode_queries([query]), ENCODER.encode_passages(candidates)
        scores = {"multi": maxsim(queries, passages).numpy()[0], "sparse": sparse_dot(queries, passages).toarray()[0]}
        for mode, row in scores.items():
            has = np.diff(passages.offsets) > 0 if mode == "multi" else row > 0
            listed = has if len(queries.dense) else np.zeros_like(has)
            expected = sorted(
                (round(-s, 2), p.passage_id) for s, p, yes in zip(row, candidates, listed, strict=True) if yes
            )
            hits = self.index.search(query, k, mode, where=where)
            assert len(hits) == min(k, len(expected))
            for hit, (score, _) in zip(hits, expected, strict=False):
                assert hit.score == pytest.approx(-score, abs=0.02)
                assert self.model[hit.passage_id].text == hit.text

    @invariant()
    def holds_the_model(self) -> None:
        if hasattr(self, "index"):
            assert len(self.index) == len(self.model)
            assert set(self.index) == set(self.model)
            for passage_id in IDS:
                assert (passage_id in self.index) == (passage_id in self.model)
            for passage_id, passage in self.model.items():
                assert self.index.get(passage_id).passage == passage

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            self.rest.close()


SETTINGS = settings(
    max_examples=10, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def test_random_sequences(kind: str, loopback: Server) -> None:
    machine = type("BackendMachine", (Machine,), {"kind": kind, "server": loopback})
    fewer = kind in ("cluster", "server")  # every call is a request
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=4) if fewer else SETTINGS)


def test_random_sequences_with_eager_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffretriever.index.exact.store.MAX_SEGMENTS", 1)
    monkeypatch.setattr("diffretriever.index.exact.store._DEAD_LEAST", 3)
    merges: list[int] = []
    merge = ExactStore._merge
    monkeypatch.setattr(ExactStore, "_merge", lambda self, first: (merges.append(first), merge(self, first)))
    run_state_machine_as_test(type("MergingMachine", (Machine,), {"kind": "exact"}), settings=SETTINGS)
    assert any(first > 0 for first in merges)
    assert any(first == 0 for first in merges)


def test_random_sequences_with_an_eagerly_shortened_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffretriever.index.exact.store.MAX_LOG_LINES", 1)
    run_state_machine_as_test(type("ShorteningMachine", (Machine,), {"kind": "exact"}), settings=SETTINGS)
