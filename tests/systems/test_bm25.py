from __future__ import annotations

import sys
from math import log

import numpy as np
import pytest

from diffretriever.corpus import Passage, Query
from diffretriever.errors import InputError, MissingExtraError
from diffretriever.evaluation import Run, evaluate, scifact
from diffretriever.evaluation.runs import ScoredPassage
from diffretriever.searcher import LexicalSystem
from diffretriever.systems.bm25 import BM25

PASSAGES = [
    Passage("d1", "Bread rises because the yeast makes gas.", title="Breads"),
    Passage("d2", "Yeast, yeast and more yeast."),
    Passage("d3", "The tilt of the axis causes seasons."),
    Passage("d4", "of the and"),
]


def test_scores_are_those_of_the_formula() -> None:
    ranking = BM25(k1=1.2, b=0.75).index(PASSAGES).search([Query("q", "the baking of bread with yeast")], 10)[0]
    # Stems left of each passage after stop words: bread bread rise becaus yeast make gas; yeast yeast more yeast; ...
    lengths = {"d1": 7, "d2": 4, "d3": 4, "d4": 0}
    average = sum(lengths.values()) / 4

    def weight(frequency: int, passages: int, length: int) -> float:
        idf = log(1 + (4 - passages + 0.5) / (passages + 0.5))
        return idf * frequency / (frequency + 1.2 * (1 - 0.75 + 0.75 * length / average))

    want = {"d1": weight(2, 1, 7) + weight(1, 2, 7), "d2": weight(3, 2, 4)}
    assert list(ranking.passage_ids) == ["d1", "d2"]
    np.testing.assert_allclose(ranking.scores, [want["d1"], want["d2"]], rtol=1e-5)
    assert ranking.floor == 0.0


def test_ties_are_ordered_by_id_also_at_the_cut() -> None:
    passages = [Passage(f"d{i:02}", "seasons change") for i in reversed(range(30))]
    rankings = BM25().index([*passages, Passage("a", "seasons")]).search([Query("q", "season")], 4)
    assert rankings[0].passage_ids == ["a", "d00", "d01", "d02"]


def test_queries_without_a_known_word_find_nothing() -> None:
    rankings = BM25().index(PASSAGES).search([Query("1", ""), Query("2", "of the"), Query("3", "quantum")], 10)
    assert [len(r) for r in rankings] == [0, 0, 0]


def test_settings_and_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    system = BM25(1.5, 0.75)
    assert isinstance(system, LexicalSystem)
    assert (system.name, system.settings["k1"], system.settings["b"]) == ("bm25", 1.5, 0.75)
    assert set(system.settings) >= {"stemmer", "stop_words", "bm25s", "pystemmer"}
    with pytest.raises(InputError, match=r"b from 0 to 1, got k1=0.9 and b=4"):
        BM25(b=4)
    with pytest.raises(InputError, match="none of the 1 passages holds a word"):
        system.index([Passage("d", "the")])
    with pytest.raises(InputError, match="mode 'lexical' and k of at least 1, got 'sparse'"):
        system.index(PASSAGES).search([], 3, "sparse")
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    with pytest.raises(MissingExtraError, match=r"the packages 'bm25s' and 'PyStemmer' are needed.*\[eval\]"):
        system.index(PASSAGES)


@pytest.mark.parametrize(("k1", "b", "expected"), [(0.9, 0.4, 0.676), (1.5, 0.75, 0.686)])
def test_scifact(k1: float, b: float, expected: float) -> None:
    collection = scifact()
    rankings = BM25(k1, b).index(list(collection.passages)).search(collection.queries, 100)
    results = [[ScoredPassage(i, s) for i, s in zip(r.passage_ids, r.scores.tolist(), strict=True)] for r in rankings]
    run = Run.of([q.query_id for q in collection.queries], results, "bm25")
    assert evaluate(run, collection.qrels)["nDCG@10"] == pytest.approx(expected, abs=5e-4)
