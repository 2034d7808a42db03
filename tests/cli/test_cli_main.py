from __future__ import annotations

import subprocess
import sys

import pytest
from cli_samples import MODEL

import diffretriever
from diffretriever.cli.console import size_text, time_text
from diffretriever.interrupts import uninterrupted


def test_version_and_help(cli):
    assert cli("--version").out == f"diffretriever {diffretriever.__version__}\n"
    shown = cli("--help")
    assert shown.code == 0
    for command in ("index", "search", "add", "delete", "info", "encode", "explain", "demo"):
        assert command in shown.out
    assert "130" in shown.out
    assert cli("search", "--help").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["index"],
        ["index", "x", "--out"],
        ["search", "x", "y", "z"],
        ["index", "x", "--out", "y", "--format", "xml"],
        ["index", "x", "--out", "y", "--query-slots", "0"],
    ],
)
def test_wrong_usage(cli, arguments):
    assert cli(*arguments).code == 2


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "diffretriever", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"diffretriever {diffretriever.__version__}\n"


def test_asking_for_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom diffretriever.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'qdrant_edge', 'nltk') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_waits_for_the_end_of_a_write():
    import signal

    done = []
    before = signal.getsignal(signal.SIGINT)

    def write():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("written")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == ["written"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        (size_text, 12, "12 bytes"),
        (size_text, 1234, "1.2 KB"),
        (size_text, 131_000_000, "131 MB"),
        (size_text, 2.5e12, "2.5 TB"),
        (time_text, 0.2, "1 s"),
        (time_text, 75, "75 s"),
        (time_text, 600, "10 min"),
        (time_text, 36_000, "10.0 h"),
    ],
)
def test_sizes_and_times_are_readable(function, value, shown):
    assert function(value) == shown


class TestDemo:
    def test_a_small_part_is_indexed_answered_and_measured(self, cli, tmp_path):
        first = cli("demo", "--limit", 24, "--model", MODEL, "--out", tmp_path / "i")
        assert first.code == 0, first.err
        assert "24 abstracts" in first.err
        assert "small part of SciFact" in first.err
        assert "claim: A deficiency of vitamin B12" in first.out
        assert "evidence according to the judges: " in first.out
        assert "MaxSim" in first.out
        for name in ("nDCG@10", "R@100", "hybrid", "multi", "single", "sparse"):
            assert name in first.out
        second = cli("demo", "--limit", 24, "--model", MODEL, "--out", tmp_path / "i")
        assert "holds them all already" in second.err
        assert second.out == first.out

    def test_the_index_of_something_else_is_left_alone(self, cli, finished_index):
        done = cli("demo", "--limit", 24, "--model", MODEL, "--out", finished_index)
        assert done.code == 1
        assert "other passages" in done.err

    def test_measures_need_their_extra(self, cli, monkeypatch):
        monkeypatch.setitem(sys.modules, "ir_measures", None)
        done = cli("demo")
        assert done.code == 1
        assert "diffretriever[eval]" in done.err
