from __future__ import annotations

import shutil
from pathlib import Path

import index_size
import index_speed
import pytest

from diffretriever.cli.main import app

GOLDEN = Path(__file__).parents[1] / "golden"
Printed = pytest.CaptureFixture[str]


def rows(printed: str) -> list[list[str]]:
    """Return the cells of every row of the Markdown tables that were printed."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_engine_and_number_of_slots_has_a_row(capsys: Printed) -> None:
    index_speed.main(["--passages", "120", "--slots", "1", "3", "--dim", "16", "--queries", "2", "--clock", "cpu"])
    head, *table = rows(capsys.readouterr().out)
    assert [(row[0], row[1]) for row in table] == [
        (f"120 x {slots} x 16", index)
        for slots in (1, 3)
        for index in ("exact float16", "edge float16", "edge float16, codes int8", "edge float16, codes binary")
    ]
    for row in table:
        assert len(row) == len(head)
        assert row[7] == "1.000 / 1.000"  # all is compared where there is so little
        assert float(row[3]) > 0


def test_every_storage_has_a_row_and_the_default_its_recalls(tmp_path: Path, capsys: Printed) -> None:
    folder, encodings = tmp_path / "golden", tmp_path / "encodings"
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        shutil.copy(GOLDEN / "data" / name, folder / name)
    shutil.copy(GOLDEN / "data" / "qrels.tsv", folder / "qrels" / "test.tsv")
    model = ["--model", str(GOLDEN / "checkpoints" / "tiny-dream")]
    for name, options in (("corpus", []), ("queries", ["--queries"])):
        out = ["--out", str(encodings / f"golden-{name}")]
        with pytest.raises(SystemExit) as stop:
            app(["encode", str(folder / f"{name}.jsonl"), *options, *out, *model])
        assert not stop.value.code
    capsys.readouterr()
    index_size.main([str(folder), "--encodings", str(encodings), "--clock", "cpu"])
    printed = capsys.readouterr().out
    table = [row for row in rows(printed) if row[0] == "golden"]
    sizes = {row[1]: int(row[2].replace(",", "")) for row in table}
    assert list(sizes) == [f"{backend} {storage}" for backend, storage in index_size.choices(64)]
    assert sizes["exact binary"] < sizes["exact int8"] < sizes["exact float16"] < sizes["exact float32"]
    lossless = [row[3:5] for row in table if row[1] in ("edge float16", "edge float16, codes int8", "exact float16")]
    assert len(lossless) == 3
    assert lossless[0] == lossless[1] == lossless[2]
    assert "| depth | recall@10 | recall@100 | p50 ms |" in printed
    assert "20 passages, 8 queries" in printed
