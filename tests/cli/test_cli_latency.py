from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from cli_samples import MODEL

from diffretriever.studies.latency_results import LatencyResults


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One run of the whole study over tiny shapes."""
    from diffretriever.cli.main import app

    out = tmp_path_factory.mktemp("latency")
    options = ["--lengths", "20,60,5000", "--slots", "1,4", "--answers", "1,3", "--rounds", "3", "--batch", "2"]
    with pytest.raises(SystemExit) as stop:
        app(
            [
                "latency",
                "--shape",
                "tiny-dream",
                "--shape",
                "tiny-qwen2",
                *options,
                "--sizes",
                "50,100",
                "--out",
                str(out),
            ]
        )
    assert not stop.value.code
    return out / "latency.json"


def test_every_system_and_length_has_a_point(measured):
    results = LatencyResults.read(measured)
    keys = ["tiny-dream K=1", "tiny-dream K=4", "tiny-qwen2 N=1", "tiny-qwen2 N=3"]
    assert [s.key for s in results.systems] == keys
    assert [s.variant for s in results.systems] == ["single", "multi"] * 2
    assert {s.weights for s in results.systems} == {"random"}
    assert [p.key for p in results.encoding] == keys * 2
    for point in results.encoding:
        assert 0 < point.one.least_ms <= point.one.median_ms <= point.one.p95_ms
        assert point.one.samples == 3
        assert point.texts_per_second > 0
    assert [p.length for p in results.encoding] == [20] * 4 + [60] * 4
    assert [round(p.text_tokens) for p in results.encoding] == [20] * 4 + [60] * 4
    # Random weights all but never predict a stop token: the answers have the length that was asked for.
    assert [p.vectors for p in results.encoding[:4]] == [1, 4, 1, 3]


def test_searches_ratios_and_what_was_left_out_are_recorded(measured):
    results = LatencyResults.read(measured)
    assert [(p.query_slots, p.passage_slots, p.passages) for p in results.search] == [
        (k, m, n) for n in (50, 100) for k, m in ((1, 1), (4, 4), (4, 16))
    ]
    assert {p.dim for p in results.search} == {64}
    assert [c.name for c in results.checks[:2]] == ["tiny-dream: K=4 / K=1", "tiny-qwen2: N=3 / N=1"]
    assert all(c.value > 0 and c.passed is None for c in results.checks)
    assert [line.split(":")[0] for line in results.skipped] == [
        f"{s.key}, texts of 5000 tokens" for s in results.systems
    ]
    assert results.machine.cores >= 1
    assert "torch" in results.versions


def test_loaded_models_take_part_and_the_table_names_the_ratios(cli, tmp_path):
    options = ["--lengths", "10", "--slots", "1,2", "--rounds", 3, "--batch", 2, "--sizes", 0]
    done = cli("latency", MODEL, f"diffembed:{MODEL}", *options, "--out", tmp_path)
    assert done.code == 0
    assert "K=2 / K=1" in done.out
    systems = json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))["systems"]
    assert [(s["system"], s["vectors"], s["weights"]) for s in systems] == [
        ("diffretriever", 1, "loaded"),
        ("diffretriever", 2, "loaded"),
        ("diffembed", 1, "loaded"),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "give a MODEL or --shape NAME"),
        (["--shape", "huge"], 1, "no shape 'huge'"),
        (["--shape", "tiny-dream", "--slots", "1,x"], 1, "'1,x' is no list of whole numbers"),
        (["--shape", "tiny-dream", "--search-slots", "4"], 1, "'4' is no pair"),
        (["--shape", "tiny-dream", "--slots", "0,4"], 1, "'0,4' holds 0; the least is 1"),
        (["mini", "--slots", "32"], 1, "no model has 32 slots, which it learned; give fewer as --slots"),
        (["--shape", "tiny-dream", "--shape", "tiny-dream"], 1, "asked for twice"),
    ],
)
def test_what_cannot_be_measured_is_explained(cli, arguments, code, said):
    done = cli("latency", *arguments)
    assert done.code == code
    assert said in done.err


def test_a_file_of_another_layout_is_refused(cli, tmp_path):
    from diffretriever.errors import CorpusError

    (tmp_path / "latency.json").write_text('{"schema": 99}', encoding="utf-8")
    with pytest.raises(CorpusError, match="layout 99, this version reads 1"):
        LatencyResults.read(tmp_path / "latency.json")


#: The command, which measures no further than all lengths but the last until it is stopped.
HELD = """
import time
from diffretriever.cli.main import main
from diffretriever.studies import latency

measure = latency.measure_encoding

def held(contenders, plan, *given):
    for number, found in enumerate(measure(contenders, plan, *given), start=1):
        if number == len(plan.lengths):
            time.sleep(600)
        yield found

latency.measure_encoding = held
main()
"""


def test_a_stopped_run_leaves_what_it_has_measured(tmp_path):
    file = tmp_path / "latency.json"
    command = [sys.executable, "-c", HELD, "latency", "--shape", "tiny-dream", "--slots", "1,2"]
    command += ["--lengths", "10,20,30,40", "--rounds", "3", "--batch", "2", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts) as running:
        while running.poll() is None and not file.is_file():
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=300)[1]
    assert running.returncode == 130, said
    lengths = {point.length for point in LatencyResults.read(file).encoding}
    assert lengths < {10, 20, 30, 40}
    assert 10 in lengths


def hear_interrupts():
    # A shell that starts jobs in the background makes them deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
