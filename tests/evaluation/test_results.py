from __future__ import annotations

import json

import pytest
from evaluation_samples import some_results

from diffretriever.errors import CorpusError
from diffretriever.evaluation.results import RESULTS_FILE, Results, find_results


def test_results_come_back_as_they_were_written(tmp_path):
    results = some_results()
    results.write(tmp_path / "a" / "b")
    assert Results.read(tmp_path / "a" / "b") == results
    assert Results.read(tmp_path / "a" / "b" / RESULTS_FILE) == results
    assert find_results(tmp_path) == [(tmp_path / "a" / "b", results)]
    assert results.mode("multi").measures == {"nDCG@10": 0.5}
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [RESULTS_FILE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "layout 2, this version reads 1"),
        ({"extra": 1}, "extra is no field of Results"),
        ({"seed": "one"}, "seed must be int, got 'one'"),
        ({"seed": True}, "seed must be int, got True"),
        ({"modes": [{"mode": "multi"}]}, r"modes\[0\]\.run is missing"),
        ({"times": None}, "times must be an object"),
        ({"versions": {"torch": 2}}, r"versions\.torch must be str"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_field(tmp_path, change, message):
    some_results().write(tmp_path)
    content = json.loads((tmp_path / RESULTS_FILE).read_text())
    (tmp_path / RESULTS_FILE).write_text(json.dumps(content | change))
    with pytest.raises(CorpusError, match=message):
        Results.read(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(CorpusError, match="no such file"):
        Results.read(tmp_path)
    with pytest.raises(CorpusError, match=r"no results\.json below"):
        find_results(tmp_path)
    with pytest.raises(CorpusError, match="no mode 'sparse'"):
        some_results().mode("sparse")
