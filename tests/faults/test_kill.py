"""Ten kills of each backend (200 among the slow tests), and proof that the harness would notice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffretriever.corpus import Passage
from tests.faults.model import Model, Operation

ROOT = Path(__file__).parents[2]
OLD, NEW = Passage("a", "old"), Passage("a", "new", metadata={"n": 1})

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the writer is forked from a process with many libraries"
)


def run_harness(*arguments, prelude="", patience=900):
    """Run the harness in a process of its own: threads of other tests would not survive its forks."""
    code = f"import sys, torch\nfrom tests.faults import kill\n{prelude}\nsys.exit(kill.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=patience
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_nothing_acknowledged_is_lost_and_nothing_deleted_comes_back(backend):
    summary = run_harness("--kills", "10", "--backend", backend, "--seed", "3")
    assert summary["violations"] == []
    assert summary["kills"] == 10
    assert sum(summary["operations"].values()) > 20
    assert summary["searches"] > 0


@pytest.mark.slow
def test_two_hundred_kills(backend):
    summary = run_harness("--kills", "200", "--backend", backend, "--seed", "4", patience=3600)
    assert summary["violations"] == []
    assert summary["kills"] == 200
    assert summary["snapshots"] > 0


# Without merges, which would write down what the log was not told.
FORGETFUL = """
from diffretriever.index.exact.store import ExactStore
from tests.faults import writer
ExactStore.maintain = lambda self: None
"""
FORGETS_DELETIONS = FORGETFUL + "ExactStore.delete = ExactStore._apply_delete; writer._KINDS = {'add': 1, 'delete': 1}"
FORGETS_EVERYTHING = FORGETFUL + "ExactStore._commit = lambda self, entry, apply: apply(); writer._KINDS = {'add': 1}"


@pytest.mark.parametrize(
    ("prelude", "verdict"),
    [(FORGETS_DELETIONS, "resurrected"), (FORGETS_EVERYTHING, "lost")],
    ids=["deletions", "everything"],
)
def test_a_store_that_forgets_is_found_out(prelude, verdict):
    # Many operations before each kill: a writer that is killed while it opens has nothing to forget.
    summary = run_harness("--kills", "3", "--least", "20", "--backend", "exact", "--seed", "0", prelude=prelude)
    assert verdict in {violation.split(":")[0] for violation in summary["violations"]}


def test_an_acknowledged_operation_leaves_one_state():
    model = Model()
    model.apply(Operation("add", passages=(OLD,)), acknowledged=True)
    assert model.copy().observe({"a": OLD}) == []
    assert model.copy().observe({})[0].startswith("lost: 'a'")
    assert model.copy().observe({"a": NEW})[0].startswith("changed: 'a'")
    model.apply(Operation("delete", ids=("a", "b")), acknowledged=True)
    assert model.copy().observe({}) == []
    assert model.copy().observe({"a": OLD})[0].startswith("resurrected: 'a'")


def test_an_operation_cut_short_leaves_two_until_somebody_looks():
    model = Model({"a": [OLD]})
    model.apply(Operation("add", passages=(NEW,)), acknowledged=False)
    for state in (OLD, NEW):
        seen = model.copy()
        assert seen.observe({"a": state}) == []
        assert len(seen.observe({"a": NEW if state is OLD else OLD})) == 1
    assert model.copy().observe({})[0].startswith("lost")
    model.apply(Operation("set_metadata", metadata={"a": {"n": 2}}), acknowledged=True)
    assert model.copy().observe({"a": Passage("a", "old", metadata={"n": 2})}) == []
    assert len(model.copy().observe({"a": NEW})) == 1


def test_operations_survive_the_journal():
    operation = Operation("add", (NEW,), {"b": {"x": [1]}}, ("c",), "d")
    assert Operation.from_json(json.loads(json.dumps(operation.to_json()))) == operation
