from __future__ import annotations

import math

import pytest

from diffretriever.training.salience import TermStatistics, part_words, passage_weights, query_weights, salient_words

# word, its pieces; "genome" is rare, "study" is in every text
TEXTS = [
    [("study", (1,)), ("genome", (2,)), ("genomes", (3,)), ("study", (1,))],
    [("study", (1,)), ("heart", (4,))],
    [("study", (1,)), ("xylo", (5, 6))],
]
STATISTICS = TermStatistics.count(TEXTS)


def test_counts_texts_not_occurrences():
    assert STATISTICS.texts == 3
    assert STATISTICS.frequency == {1: 3, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}
    assert STATISTICS.mean_length == pytest.approx(8 / 3)


def test_idf_by_hand_and_of_an_unknown_id():
    assert STATISTICS.idf(1) == pytest.approx(math.log(1 + 0.5 / 3.5))
    assert STATISTICS.idf(99) == pytest.approx(math.log(1 + 3.5 / 0.5))


def test_rare_words_come_first_and_one_word_stands_for_its_inflections():
    assert salient_words(TEXTS[0], STATISTICS, 4) == [2, 1]


def test_words_of_several_pieces_and_digits_are_not_said():
    assert salient_words([("xylo", (5, 6)), ("42", (7,)), ("heart", (4,))], STATISTICS, 4) == [4]


def test_at_most_k_words():
    assert len(salient_words(TEXTS[0], STATISTICS, 1)) == 1
    assert salient_words([], STATISTICS, 4) == []


def test_the_product_of_both_sides_is_bm25():
    text = TEXTS[0]
    q, p = query_weights([("study", (1,))], STATISTICS, scale=0.5), passage_weights(text, STATISTICS, scale=0.5)
    length = 0.9 * (1 - 0.4 + 0.4 * 4 / (8 / 3))
    bm25 = STATISTICS.idf(1) * 2 * 1.9 / (2 + length)
    assert q[1] * p[1] == pytest.approx(0.25 * bm25)
    assert set(p) == {1, 2, 3}


def test_each_part_says_its_most_salient_word():
    texts = [[("rain", (1,)), ("falls", (2,))], [("falls", (2,))], [("falls", (2,)), ("night", (4,))]]
    statistics = TermStatistics.count(texts)
    words = [("falls", (2,)), ("rain", (1,)), ("night", (4,)), ("rain", (1,)), ("pieces", (7, 8)), ("night", (4,))]
    assert part_words(words, statistics, 3) == [1, 4, None]
    assert part_words(words[:2], statistics, 4) == [2, None, 1, None]
    assert part_words([], statistics, 2) == [None, None]
