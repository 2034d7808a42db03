"""Collection idf: what the term weights of queries are multiplied by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffretriever.idf import document_frequencies, idf_factors, weigh
from tests.index.hashing import HashEncoder


def bm25_idf(frequencies, texts):
    return np.log1p((texts - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)


def test_a_collection_that_is_as_the_model_thinks_changes_nothing():
    frequencies = np.array([1, 5, 90, 400, 1000])
    assert idf_factors(frequencies, 1000, 3.7 * bm25_idf(frequencies, 1000)) == pytest.approx(np.ones(5), abs=1e-6)


def test_what_is_rarer_here_counts_more_and_what_is_everywhere_less():
    found = idf_factors(np.array([100, 200, 900]), 1000, np.ones(3, np.float32))
    own = bm25_idf(np.array([100, 200, 900]), 1000)
    ratio = np.clip(own / np.average(own, weights=[100, 200, 900]), 0.25, 4.0)
    assert found == pytest.approx(ratio ** (0.5 * 1000 / 1100), rel=1e-5)
    assert found[0] > found[1] > 1 > found[2]


def test_few_passages_change_little():
    spread = [np.ptp(idf_factors(np.array([1, n]), n, np.ones(2, np.float32))) for n in (3, 30, 300, 3000)]
    assert spread == sorted(spread)
    assert spread[0] < 0.1 < spread[-1]


def test_a_collection_without_terms_changes_nothing():
    assert idf_factors(np.zeros(4, np.int64), 10, np.ones(4, np.float32)).tolist() == [1.0] * 4


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 100, width=32)), min_size=1, max_size=30),
    st.integers(5000, 10**7),
)
def test_factors_stay_within_two(terms, texts):
    frequencies, model = np.array([f for f, _ in terms]), np.array([m for _, m in terms], np.float32)
    found = idf_factors(frequencies, texts, model)
    assert found.dtype == np.float32
    assert ((found >= 0.5 - 1e-6) & (found <= 2 + 1e-6)).all()


def test_frequencies_are_counted_over_parts_and_weights_multiplied():
    encoder = HashEncoder()
    parts = [encoder.encode_passages(["sun moon", "moon moon"]), encoder.encode_passages(["moon tide"])]
    frequencies, texts = document_frequencies(parts, encoder.vocabulary_size)
    both = np.concatenate([p.sparse.toarray() for p in parts])
    assert texts == 3
    assert frequencies.tolist() == (both > 0).sum(axis=0).tolist()
    factors = np.linspace(0.5, 2, encoder.vocabulary_size, dtype=np.float32)
    queries = encoder.encode_queries(["sun tide", "moon", ""])
    weighed = weigh(queries, factors)
    np.testing.assert_array_equal(weighed.sparse.toarray(), queries.sparse.toarray() * factors)
    np.testing.assert_array_equal(weighed.dense, queries.dense)
