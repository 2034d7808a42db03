"""Damaged index folders: refused, found by check, or intact; never a wrong answer. `tests.faults.damage` tries more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.children import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="each case is forked from a process with many libraries"
)


@pytest.mark.parametrize(("backend", "sample"), [("edge", 16), ("exact", 40)])
def test_a_damaged_file_is_never_read_as_if_it_were_whole(backend, sample):
    command = [sys.executable, "-m", "tests.faults.damage", "--backend", backend, "--sample", str(sample)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'refused'" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["edge", "exact"])
def test_damage_of_every_kind_to_every_file(backend):
    command = [sys.executable, "-m", "tests.faults.damage", "--backend", backend, "--flips", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
