"""Approximate search: its recall, measured, chosen, kept and reported."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diffretriever.corpus import Passage
from diffretriever.errors import InputError
from diffretriever.index import Calibration, Index, Recall, Storage
from diffretriever.index.calibration import CALIBRATION_NOTE
from diffretriever.index.recall import measure, sample_queries
from tests.index.hashing import HashEncoder, random_representations

COUNT = 2500


@pytest.fixture(scope="module")
def passages():
    return random_representations(COUNT, seed=5, slots=(0, 5), terms=3)


@pytest.fixture(scope="module", params=[None, "binary"], ids=["pooled", "codes"])
def index(request, passages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recall")
    with Index.create(folder, passages, storage=Storage(codes=request.param)) as made:
        made.add_representations([Passage(f"p{i}", "") for i in range(COUNT)], passages)
        yield made


def found_share(index, queries, k, **options):
    """Return the share of the truly k best passages that an approximate search finds, and its hits."""
    exact = index.search_batch(queries, k, "multi", exact=True)
    fast = index.search_batch(queries, k, "multi", exact=False, **options)
    shares = [
        len({hit.passage_id for hit in a} & {hit.passage_id for hit in b}) / k for a, b in zip(exact, fast, strict=True)
    ]
    return float(np.mean(shares)), fast


def test_a_wanted_recall_is_reached_on_other_queries(index):
    queries = random_representations(60, seed=9, slots=(4, 4))
    reached = {}
    for wanted in (0.5, 0.9, 1.0):
        reached[wanted], hits = found_share(index, queries, 10, recall=wanted)
        # Queries unlike the passages are harder than those it was calibrated on; some of the shortfall is chance.
        assert reached[wanted] >= wanted - 0.1
        depth = index.current_calibration().depth(10, wanted)
        assert all(hit.exact == (depth is None) for found in hits for hit in found)
    assert reached[1.0] == 1.0
    calibration = index.current_calibration()
    assert calibration.passages == COUNT
    assert calibration.queries == 64
    assert (calibration.depth(10, 0.5) or COUNT) < (calibration.depth(10, 0.9) or COUNT)


def test_measured_recalls_are_those_of_searches(index):
    queries = random_representations(12, seed=10, slots=(4, 4))
    rows = index.recalls(queries, (10, 50))
    assert {(row.k, row.mean) for row in rows if row.depth == 0} == {(10, 1.0), (50, 1.0)}
    depth = next(row.depth for row in rows if row.depth)
    store, compared = index._store, index.comparable(queries)
    for k in (10, 50):
        exact = store.search(compared, "multi", k, where=None, exact=True)
        fast = store.search(compared, "multi", 50, where=None, exact=False, depth=depth)
        share = np.mean([len({*e.passage_ids} & {*f.passage_ids[:k]}) / k for e, f in zip(exact, fast, strict=True)])
        assert next(row.mean for row in rows if (row.depth, row.k) == (depth, k)) == pytest.approx(share)
    means = [row.mean for row in rows if row.depth and row.k == 10]
    assert means[-1] > means[0]


def test_queries_are_made_of_passages_that_do_not_count(index, passages):
    queries, own = sample_queries(index._store, 3, 20)
    assert len(set(own)) == len(own) == 20
    for i, passage_id in enumerate(own):
        stored = index.get(passage_id).representations.dense
        vectors = queries.vectors(i)
        assert len(vectors) == min(3, len(stored))
        assert all((vector == stored).all(axis=1).any() for vector in vectors)
        np.testing.assert_allclose(queries.pooled[i], vectors.mean(axis=0), atol=1e-6)
    again, _ = sample_queries(index._store, 3, 20)
    np.testing.assert_array_equal(again.dense, queries.dense)
    truth = next(iter(measure(index._store, queries, (10,), own)))
    assert (truth.depth, truth.mean) == (0, 1.0)


def test_a_calibration_stays_with_the_index_until_it_has_grown(tmp_path, passages, monkeypatch):
    calls = []
    from diffretriever.index import reading

    real = reading.calibrate
    monkeypatch.setattr(reading, "calibrate", lambda *given: calls.append(1) or real(*given))
    queries = random_representations(1, seed=2, slots=(4, 4))

    def add(index, first, last):
        rows = [*range(first, last)]
        index.add_representations([Passage(f"p{i}", "") for i in rows], passages.select(rows))

    with Index.create(tmp_path / "i", passages) as index:
        add(index, 0, 400)
        index.search(queries, 10, "multi")  # compares with everything: nothing to measure
        assert not calls
        for _ in range(2):
            index.search(queries, 10, "multi", exact=False)
        assert len(calls) == 1
        index.snapshot(tmp_path / "s")
    for place in ("i", "s"):
        with Index.open(tmp_path / place) as index:
            add(index, 400, 500)
            index.search(queries, 10, "multi", exact=False)
            assert len(calls) == 1
    with Index.open(tmp_path / "i") as index:
        add(index, 500, 700)
        index.search(queries, 10, "multi", exact=False)
        assert len(calls) == 2
        assert index.current_calibration().passages == 700
    (tmp_path / "i" / CALIBRATION_NOTE).write_text('{"passages": "many"}')
    with Index.open(tmp_path / "i") as index:
        index.search(queries, 10, "multi", exact=False)
    assert len(calls) == 3
    with Index.create(tmp_path / "i", passages, overwrite=True):
        assert not (tmp_path / "i" / CALIBRATION_NOTE).exists()


def test_a_calibration_that_is_no_utf8_is_measured_again(tmp_path, passages):
    queries = random_representations(1, seed=2, slots=(4, 4))
    with Index.create(tmp_path / "i", passages) as index:
        index.add_representations([Passage(f"p{i}", "") for i in range(300)], passages.select([*range(300)]))
        made = index.calibrate()
        path = tmp_path / "i" / CALIBRATION_NOTE
        raw = path.read_bytes()
        path.write_bytes(raw[:3] + bytes([raw[3] ^ 0x80]) + raw[4:])
    with Index.open(tmp_path / "i") as index:
        index.search(queries, 10, "multi", exact=False)
        assert index.current_calibration().passages == made.passages
    assert Calibration.from_json(path.read_text(encoding="utf-8")) is not None


def test_a_server_is_calibrated_when_asked(loopback, passages):
    address = loopback.url("calibrated")
    few = passages.select(slice(0, 300))
    queries = random_representations(5, seed=2, slots=(4, 4))
    with Index.create(address, passages) as index:
        index.add_representations([Passage(f"p{i}", "") for i in range(300)], few)
        assert index.current_calibration() is None
        assert not any(hit.exact for hit in index.search_batch(queries, 10, "multi", exact=False)[0])
        made = index.calibrate()
    with Index.open(address) as index:
        assert index.current_calibration() == made
        index.search_batch(queries, 10, "multi", exact=False)


def test_depths_are_chosen_with_a_margin_and_for_lengths_between():
    rows = (
        Recall(100, 10, 0.96, 0.02, 1.0), Recall(100, 100, 0.80, 0.01, 1.0),
        Recall(150, 10, 0.97, 0.01, 1.0), Recall(150, 100, 0.93, 0.01, 1.0),
        Recall(200, 10, 0.99, 0.01, 1.0), Recall(200, 100, 0.97, 0.01, 1.0),
    )  # fmt: skip
    made = Calibration(1000, 64, rows)
    assert made.depth(10, 0.95) == 150
    assert made.depth(3, 0.95) == 150
    assert made.depth(50, 0.95) == 200
    assert made.depth(300, 0.95) == 600
    assert made.depth(500, 0.95) is None
    assert made.depth(10, 0.999) is None
    assert Calibration(0, 0, ()).depth(10, 0.5) is None
    assert Calibration.from_json(made.to_json()) == made
    assert Calibration.from_json("[]") is None
    assert made.fits(1500)
    assert not made.fits(1501)
    assert not made.fits(600)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_small_indexes_compare_with_everything(tmp_path, count):
    encoder = HashEncoder()
    with Index.create(tmp_path, encoder) as index:
        index.add([Passage(f"p{i}", f"w{i} shared" if i else "") for i in range(count)])
        hits = index.search("shared w3", 5, "multi", exact=False, recall=0.9)
        assert len(hits) == min(5, max(0, count - 1))
        assert all(hit.exact for hit in hits)
        with pytest.raises(InputError, match="recall must lie above 0 and be at most 1, got 1\\.5"):
            index.search("shared", recall=1.5)


def test_the_report(tmp_path, capsys, index):
    from diffretriever.cli.recalling import recall

    index.snapshot(tmp_path / "s")
    recall(str(tmp_path / "s"), as_json=True)
    about = json.loads(capsys.readouterr().out)
    assert about["queries"] == 64
    assert {row["k"] for row in about["rows"]} == {10, 100}
    assert set(about["depths"]) == {"0.9", "0.95", "0.99"}
    recall(str(tmp_path / "s"))
    printed = capsys.readouterr()
    assert "recall@100" in printed.out
    assert "recall 0.95: calibrated depth" in printed.err
