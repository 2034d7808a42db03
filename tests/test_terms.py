from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from diffretriever import terms
from diffretriever.errors import InputError
from diffretriever.terms import DEFAULT, PAPER_FINE_TUNED, PAPER_ZERO_SHOT, ContentWords, TermRule, term_weights

GOLDEN = Path(__file__).parent / "golden"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HEAD = {"dream": "lm_head.weight", "llada": "model.transformer.ff_out.weight"}
MASK = {"dream": "<|mask|>", "llada": "<|mdm_mask|>"}
SINGLE_STEP = sorted(p.stem for family in ("dream", "llada") for p in GOLDEN.glob(f"{family}_K*_S1_*.npz"))


def tiny_tokenizer(family):
    folder = GOLDEN / "checkpoints" / f"tiny-{family}"
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"].values()
    tokenizer.add_special_tokens([AddedToken(t["content"], special=True, normalized=False) for t in added])
    return tokenizer


def content_words(family, strict=False):
    tokenizer = tiny_tokenizer(family)
    excluded = frozenset({tokenizer.token_to_id(MASK[family])})
    return ContentWords(
        lambda words: [e.ids for e in tokenizer.encode_batch(words, add_special_tokens=False)], excluded, strict
    )


def spelled(strict=False):
    """A filter whose pieces are code points, for the tests that look at words alone."""
    return ContentWords(lambda words: [[ord(c) for c in w] for w in words], frozenset(), strict)


def texts(side):
    inputs = json.loads((GOLDEN / "inputs.json").read_text())
    if side == "q":
        return [text for _, text in inputs["queries"]]
    return [f"{title}. {text}" if title else text for _, title, text in inputs["corpus"]]


def dense_of(indices, values, vocabulary_size):
    out = np.zeros((*values.shape[:2], vocabulary_size), dtype=np.float32)
    np.put_along_axis(out, indices, values, axis=-1)
    return out


@pytest.mark.parametrize("name", SINGLE_STEP)
def test_golden_content_ids_are_exact(name):
    golden = np.load(GOLDEN / f"{name}.npz")["content_ids"]
    family, side = name.split("_")[0], name[-1]
    rows = content_words(family).rows(texts(side))
    width = max(rows.shape[1], golden.shape[1])
    padded = [np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=-1) for a in (rows, golden)]
    np.testing.assert_array_equal(*padded)


@pytest.mark.parametrize("name", SINGLE_STEP)
def test_golden_weights(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    family = name.split("_")[0]
    head = load_file(GOLDEN / "checkpoints" / f"tiny-{family}" / "model.safetensors")[HEAD[family]].float()
    ids = torch.from_numpy(content_words(family).rows(texts(name[-1])))
    hidden = torch.from_numpy(golden["repr_hidden"])
    logits = torch.einsum("bkd,brd->bkr", hidden, head[ids.clamp(min=0)])
    slots = dense_of(golden["sparse_indices"], golden["sparse_values"], len(head))

    keep = torch.ones(hidden.shape[:2], dtype=torch.bool)
    got = term_weights(logits, ids, keep, PAPER_ZERO_SHOT, len(head))
    assert np.abs(got.toarray() - slots.max(axis=1)).max() <= 1
    assert (got.toarray() != slots.max(axis=1)).mean() < 1e-4
    exact = term_weights(logits, ids, keep, DEFAULT, len(head)).toarray()
    np.testing.assert_allclose(exact, golden["all_sparse"], atol=1e-4)

    first = torch.zeros_like(keep)
    first[:, 0] = True
    got = term_weights(logits, ids, first, PAPER_ZERO_SHOT, len(head)).toarray()
    assert np.abs(got - slots[:, 0]).max() <= 1


def test_the_paper_filter_lets_its_leaks_pass():
    words = spelled().words("""It isn't "Earth's" C plan ... vitamin D -- café, 2024?""")
    assert words == ["n't", "``", "earth", "'s", "''", "c", "plan", "...", "vitamin", "--", "café", "2024"]


def test_the_strict_filter_mends_them():
    words = spelled(strict=True).words("""It isn't "Earth's" C plan ... vitamin D -- café, 7 水? we've covid-19""")
    assert words == ["earth", "plan", "vitamin", "café", "7", "水", "covid-19"]


def test_punkt_parameters_are_in_use():
    # "inc." is a known abbreviation: its full stop stays although a capital would follow; "cell." ends there.
    assert "inc." in spelled().words("acme inc. sells.")
    assert "cell." not in spelled().words("it enters the cell. there it divides.")


@pytest.mark.parametrize("text", ["", "   \n\t", "of the and", "?!"])
def test_texts_without_content_words_have_no_ids(text):
    assert spelled().ids(text).tolist() == []
    assert spelled().rows([text, "axis"]).tolist()[0] == [-1] * 4


def test_rows_agree_with_ids_and_excluded_ids_never_appear():
    filter_ = ContentWords(lambda words: [[ord(c) for c in w] for w in words], frozenset({ord("x")}), strict=True)
    rows = filter_.rows(["axis tilt", "of", "xxx seasons"])
    for row, text in zip(rows, ["axis tilt", "of", "xxx seasons"], strict=True):
        assert row[row >= 0].tolist() == filter_.ids(text).tolist() == sorted(set(row[row >= 0].tolist()))
    assert ord("x") not in rows
    assert filter_.rows([]).shape == (0, 0)


def test_counts_weigh_as_in_bm25_and_their_rows_are_the_usual_ones():
    # Three words of the mean length: K = k1. "axis" twice: 2 * 1.9 / 2.9; once: 1.
    assert terms.count_factors([(1, 2), (1,), (3,)], 3) == pytest.approx({1: 3.8 / 2.9, 2: 1.0, 3: 1.0})
    # Twice the mean length: K = .9 * (.6 + .4 * 2) = 1.26.
    assert terms.count_factors([(1,), (2,)], 1)[1] == pytest.approx(1.9 / 2.26)
    filter_ = ContentWords(lambda words: [[len(w)] for w in words], frozenset(), strict=True)
    texts = ["axis tilt season", "of", "seasons axis"]
    ids, factors = filter_.counted_rows(texts, 3)
    np.testing.assert_array_equal(ids, filter_.rows(texts))
    np.testing.assert_allclose(factors[0], [3.8 / 2.9, 1.0], rtol=1e-6)
    assert factors[1].tolist() == [1.0, 1.0], "padding"
    assert (factors[2] > 1).all(), "a shorter text"
    assert filter_.counted_rows([], 3)[0].shape == (0, 0)


def test_each_word_is_tokenised_once_and_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(terms, "CACHED_WORDS", 5)
    asked = []

    def encode(words):
        asked.append(list(words))
        return [[len(w)] for w in words]

    filter_ = ContentWords(encode, frozenset(), strict=True)
    filter_.rows(["axis tilt", "tilt season"])
    assert asked == [["axis", "tilt", "season"]]
    filter_.ids("season axis tilt")
    assert len(asked) == 1
    filter_.ids("axis glucose energy plane")
    assert asked[1] == ["axis", "glucose", "energy", "plane"]
    assert len(filter_._pieces) == 4
    filter_.ids("tilt")
    assert asked[2] == ["tilt"]


def test_ties_at_the_border_go_to_the_lower_id():
    logits = torch.tensor([[[1.0, 2.0, 1.0, 1.0]]])
    ids, keep = torch.tensor([[3, 5, 7, 9]]), torch.ones(1, 1, dtype=torch.bool)
    got = term_weights(logits, ids, keep, TermRule(2, None, "round"), 10)
    assert got.indices.tolist() == [3, 5]


def test_truncate_and_round_differ():
    logits, ids, keep = torch.expm1(torch.tensor([[[0.378]]])), torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.bool)
    assert term_weights(logits, ids, keep, PAPER_ZERO_SHOT, 2).data.tolist() == [37.0]
    assert term_weights(logits, ids, keep, PAPER_FINE_TUNED, 2).data.tolist() == [38.0]


def test_empty_batches_and_rows():
    none = torch.zeros(0, 4, 0), torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 4, dtype=torch.bool)
    assert term_weights(*none, DEFAULT, 9).shape == (0, 9)
    bare = torch.zeros(2, 4, 0), torch.zeros(2, 0, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    assert term_weights(*bare, DEFAULT, 9).nnz == 0


@given(st.data())
def test_weights_equal_a_loop_over_slots(data):
    batch, slots, rows, vocabulary = (data.draw(st.integers(1, n)) for n in (3, 4, 6, 12))
    seed = data.draw(st.integers(0, 2**16))
    rule = TermRule(data.draw(st.integers(1, 7)), data.draw(st.sampled_from([None, 100])), "truncate")
    rng = np.random.default_rng(seed)
    rows = min(rows, vocabulary)
    ids = np.sort(np.stack([rng.permutation(vocabulary)[:rows] for _ in range(batch)]), axis=1)
    ids[rng.random(ids.shape) < 0.2] = -1
    logits = rng.integers(-3, 4, (batch, slots, rows)).astype(np.float32)
    keep = rng.random((batch, slots)) < 0.7

    expected = np.zeros((batch, vocabulary), dtype=np.float32)
    for b in range(batch):
        for k in np.flatnonzero(keep[b]):
            found = [(-logits[b, k, r], ids[b, r]) for r in range(rows) if ids[b, r] >= 0 and logits[b, k, r] > 0]
            for negative, i in sorted(found)[: rule.top_k]:
                weight = np.log1p(-negative)
                weight = np.trunc(weight * 100) if rule.scale else weight
                expected[b, i] = max(expected[b, i], weight)
    got = term_weights(torch.from_numpy(logits), torch.from_numpy(ids), torch.from_numpy(keep), rule, vocabulary)
    assert isinstance(got, sp.csr_matrix)
    assert got.dtype == np.float32
    assert (got.data > 0).all()
    np.testing.assert_allclose(got.toarray(), expected, rtol=1e-6)


def test_bad_input_is_named():
    ids, keep = torch.tensor([[1, 2]]), torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(InputError, match=r"not \[1, 2\] and \[1, 3\]"):
        term_weights(torch.zeros(1, 4, 2), ids, keep, DEFAULT, 9)
    with pytest.raises(InputError, match="id 2 is outside the vocabulary of 2"):
        term_weights(torch.zeros(1, 3, 2), ids, keep, DEFAULT, 2)
    for bad in ((0, None, "round"), (1, 0, "round"), (1, 1, "up")):
        with pytest.raises(InputError):
            TermRule(*bad)


def test_import_does_no_work():
    code = "import sys, diffretriever.terms; sys.exit('nltk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
