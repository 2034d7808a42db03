from __future__ import annotations

import json

from cli_samples import MODEL

OPTIONS = ["--passages", 3, "--vectors", 50, "--rounds", 3, "--dtype", "float32"]


def test_every_kind_of_call_has_a_row_and_the_file_holds_what_is_printed(cli, tmp_path):
    out = tmp_path / "results" / "bench.json"
    done = cli("bench", MODEL, *OPTIONS, "--json", "--out", out)
    assert done.code == 0
    measured = json.loads(out.read_text(encoding="utf-8"))
    assert measured == done.json
    rows = {row["name"]: row for row in measured["rows"]}
    assert list(rows) == [
        "encode 3 passages",
        "encode 1 query, K = 1",
        "encode 1 query, K = 16",
        "MaxSim, 1 query, 50 passages",
        "MaxSim, 32 queries, 50 passages",
        "text to hits, hybrid, 3 passages",
    ]
    for row in rows.values():
        assert 0 < row["least"] <= row["median"] <= row["greatest"]
        assert row["rounds"] == 3
        assert row["cpu_seconds"] > 0
    assert [row["unit"] for row in rows.values()] == ["passages/s", "ms", "ms", "ms", "queries/s", "ms"]
    median, least, greatest = measured["ratio"]
    assert 0 < least <= median <= greatest
    assert measured["machine"]["threads"] == 1
    assert measured["provenance"]["dtype"] == "float32"


def test_the_table_names_machine_and_versions(cli):
    done = cli("bench", "mini", *OPTIONS[:-2])
    assert done.code == 0
    assert "K = 16 / K = 1: " in done.out
    assert "threads: 1, load " in done.out
    assert "torch " in done.out


def test_a_system_without_masked_positions_is_refused(cli):
    done = cli("bench", "minilm", *OPTIONS)
    assert done.code == 1
    assert "minilm is opened as diffembed" in done.err
