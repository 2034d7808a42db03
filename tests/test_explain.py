from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from diffretriever.errors import InputError
from diffretriever.explain import explain, explain_fusion
from diffretriever.fusion import Ranking, fuse
from diffretriever.representations import Provenance, Representations, SlotWords
from diffretriever.scoring import maxsim, single_dense, sparse_dot

PROVENANCE = Provenance("m", "f", "few", "h", "default", "slot", 4, 16, 1, 64, 512, "float32", "0")
VOCABULARY = 12


def one_text(slots, seed, words=("<b>&", "[red]x[/red]", "\x1b[2J", "earth")):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(slots, 5)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    sparse = sp.csr_matrix(
        np.where(rng.random((1, VOCABULARY)) < 0.5, rng.random((1, VOCABULARY)), 0), dtype=np.float32
    )
    ids = rng.integers(0, len(words), (slots, 2)).astype(np.int32)
    slot_words = SlotWords(ids, np.full((slots, 2), 0.25, np.float32), dict(enumerate(words)))
    pooled = dense.mean(axis=0, keepdims=True) if slots else np.zeros((1, 5), np.float32)
    return Representations(dense, np.array([0, slots]), pooled, sparse, slot_words, PROVENANCE)


def unit_pooled(text):
    length = np.linalg.norm(text.pooled, axis=1, keepdims=True)
    return dataclasses.replace(text, pooled=text.pooled / np.maximum(length, 1e-9))


def term(i):
    return f"<t{i}>"


@settings(max_examples=50)
@given(
    query_slots=st.integers(0, 5),
    passage_slots=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
    unit=st.booleans(),
)
def test_contributions_add_up_to_the_scores(query_slots, passage_slots, seed, unit):
    query, passage = one_text(query_slots, seed), one_text(passage_slots, seed + 1)
    if unit:
        query, passage = (unit_pooled(query), unit_pooled(passage))
    result = explain(query, passage, term=term)
    dense, sparse = float(maxsim(query, passage)), float(sparse_dot(query, passage).toarray()[0, 0])
    assert sum(m.contribution for m in result.slots) == pytest.approx(dense, abs=1e-5)
    assert sum(m.contribution for m in result.terms) == pytest.approx(sparse, abs=1e-5)
    single = float(single_dense(query, passage))
    assert sum(m.contribution for m in result.pooled) == pytest.approx(single if query_slots else 0.0, abs=1e-5)
    assert result.single == pytest.approx(single if query_slots else 0.0, abs=1e-5)
    assert (result.maxsim, result.sparse) == (pytest.approx(dense, abs=1e-5), pytest.approx(sparse, abs=1e-5))
    for total, matches in ((dense, result.slots), (sparse, result.terms)):
        assert sum(m.share for m in matches) == pytest.approx(1.0 if total else 0.0)


@settings(max_examples=60)
@given(
    dense=st.dictionaries(st.sampled_from("abcdef"), st.floats(-1, 4), max_size=6),
    sparse=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 9), max_size=6),
    alpha=st.floats(0, 1),
    floor=st.sampled_from([None, 0.0]),
    method=st.sampled_from(["minmax", "rrf"]),
)
def test_fused_parts_add_up_to_the_fused_score(dense, sparse, alpha, floor, method):
    rankings = [Ranking.sort(list(side), list(side.values()), floor=f) for side, f in ((dense, None), (sparse, floor))]
    fused = fuse(*rankings, method=method, alpha=alpha)
    for passage_id, score in zip(fused.passage_ids, fused.scores.tolist(), strict=True):
        parts = explain_fusion(passage_id, *rankings, method=method, alpha=alpha)
        assert sum(part.contribution for part in parts) == pytest.approx(score, abs=1e-9)
        for part, side in zip(parts, (dense, sparse), strict=True):
            assert part.score == side.get(passage_id)
            assert (part.rank is None) == (passage_id not in side)
    assert explain_fusion("nowhere", *rankings, alpha=alpha) == ()


def test_fused_parts_are_shown():
    parts = explain_fusion("a", Ranking.sort(["a", "b"], [3.0, 1.0]), Ranking.sort(["b"], [5.0], floor=0.0), alpha=0.25)
    result = explain(one_text(1, 1), one_text(1, 2), term=term, fused=parts)
    assert result.hybrid == 0.25
    assert "Hybrid 0.2500" in result.to_html()
    parts = explain_fusion("b", Ranking.sort(["a", "b"], [3.0, 1.0]), Ranking.sort(["b"], [5.0]), method="rrf")
    assert [part.rank for part in parts] == [2, 1]
    assert "reciprocal ranks" in explain(one_text(1, 1), one_text(1, 2), term=term, fused=parts).to_html()


def test_each_slot_names_its_best_match_with_the_words_of_both():
    query, passage = one_text(3, 1), one_text(7, 2)
    similarities = query.vectors(0) @ passage.vectors(0).T
    for match in explain(query, passage, term=term).slots:
        assert match.passage_slot == similarities[match.query_slot].argmax()
        assert list(match.query_words) == query.slot_words(0)[match.query_slot]
        assert list(match.passage_words) == passage.slot_words(0)[match.passage_slot]


def test_terms_are_those_of_both_sides_largest_first():
    query, passage = one_text(1, 3), one_text(1, 4)
    result = explain(query, passage, term=term)
    shared = set(query.sparse.indices) & set(passage.sparse.indices)
    assert {m.term_id for m in result.terms} == shared
    assert [m.contribution for m in result.terms] == sorted((m.contribution for m in result.terms), reverse=True)


def test_texts_without_words_or_vectors_are_explained_all_the_same():
    bare = dataclasses.replace(one_text(2, 5), words=None)
    result = explain(bare, one_text(0, 6), term=term)
    assert [(m.passage_slot, m.query_words, m.contribution) for m in result.slots] == [(None, (), 0.0)] * 2


def test_json_has_named_fields():
    data = json.loads(explain(one_text(2, 1), one_text(2, 2), term=term, query="q?", passage_id="p").to_json())
    assert (data["query"], data["passage_id"]) == ("q?", "p")
    assert set(data["slots"][0]["query_words"][0]) == {"word", "probability"}
    assert data["maxsim"] == pytest.approx(sum(s["contribution"] for s in data["slots"]))


def test_html_is_escaped_and_self_contained():
    query, passage = one_text(2, 1), one_text(2, 2)
    page = explain(query, passage, term=term, query="<script>alert(1)</script>", passage_id="<i>").to_html()
    assert "<script>" not in page
    assert "<i>" not in page
    assert "&lt;t" in page
    assert "http" not in page


def test_a_terminal_sees_words_verbatim_but_no_control_characters():
    out = io.StringIO()
    query = one_text(2, 1, words=("[red]x[/red]", "\x1b[2J"))
    Console(file=out, width=160).print(explain(query, query, term=term).to_rich())
    assert "\x1b" not in out.getvalue()
    assert "[red]x[/red]" in out.getvalue()


def test_one_of_each_encoded_alike():
    query = one_text(1, 1)
    with pytest.raises(InputError, match="one query and one passage, got 2 and 1"):
        explain(Representations.concatenate([query, query]), query, term=term)
    other = dataclasses.replace(query, provenance=dataclasses.replace(PROVENANCE, prompt_hash="other"))
    with pytest.raises(InputError, match="prompt_hash"):
        explain(query, other, term=term)
