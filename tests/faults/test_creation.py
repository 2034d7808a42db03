"""An index whose creation was killed is none, or a whole one."""

from __future__ import annotations

import sys

import pytest

from tests.faults.children import run

KILL = """
from tests.faults.creation import kill_at_every_step
for verdict in kill_at_every_step(Path(sys.argv[1]), sys.argv[2]):
    print(verdict)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="each case is forked from a process with many libraries")
def test_a_creation_that_is_killed_anywhere_is_taken_up_as_if_it_had_never_begun(tmp_path, backend):
    verdicts = run(KILL, tmp_path, backend)
    assert len(verdicts) > 20
    assert set(verdicts) == {"as if never killed"}
