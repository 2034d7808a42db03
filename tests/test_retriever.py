from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffretriever.backbones.backbone import Backbone
from diffretriever.corpus import Passage
from diffretriever.encoder import Encoder
from diffretriever.errors import CheckpointError, InputError
from diffretriever.representations import Representations
from diffretriever.retriever import DiffRetriever
from tests.conftest import CHECKPOINTS, Inputs


@pytest.fixture(scope="module")
def model() -> DiffRetriever:
    return DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-dream", query_slots=3, passage_slots=5, device="cpu")


def same(one: Representations, other: Representations, atol: float = 1e-5) -> None:
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_allclose(one.dense, other.dense, atol=atol)
    np.testing.assert_allclose(one.pooled, other.pooled, atol=atol)
    np.testing.assert_allclose(one.sparse.toarray(), other.sparse.toarray(), atol=1e-4)


def test_is_an_encoder(model: DiffRetriever) -> None:
    assert isinstance(model, Encoder)


def test_shapes_norms_and_words(model: DiffRetriever, inputs: Inputs) -> None:
    got = model.encode_passages(inputs.passages, words=2)
    assert len(got) == 20
    assert got.dense.shape == (int(got.offsets[-1]), 64)
    np.testing.assert_allclose(np.linalg.norm(got.dense, axis=1), 1, atol=1e-5)
    mean = got.vectors(3).mean(0)
    np.testing.assert_allclose(got.pooled[3], mean / np.linalg.norm(mean), atol=1e-6)
    words = got.slot_words(0)
    assert [len(w) for w in words] == [2] * len(got.vectors(0))
    assert all(0 < w.probability <= 1 and w.word for slot in words for w in slot)
    assert model.encode_passages(inputs.passages[:1]).slot_words(0) == []


def test_the_paper_protocol_leaves_the_pooled_vector_as_the_mean(model: DiffRetriever, inputs: Inputs) -> None:
    paper = DiffRetriever(model.backbone, replace(model.settings, protocol="paper"))
    got = paper.encode_passages(inputs.passages)
    means = np.stack([got.vectors(i).mean(0) for i in range(len(got))])
    np.testing.assert_allclose(got.pooled, means, atol=1e-6)
    assert (np.linalg.norm(got.pooled, axis=1) < 0.999).all()


def test_batches_and_order_do_not_matter(model: DiffRetriever, inputs: Inputs) -> None:
    together = model.encode_passages(inputs.passages)
    single = Representations.concatenate([model.encode_passages([p]) for p in inputs.passages])
    same(together, single)
    backwards = model.encode_passages(inputs.passages[::-1])
    same(together, backwards.select(slice(None, None, -1)))
    narrow = DiffRetriever(model.backbone, model.settings, batch_tokens=1)
    same(together, narrow.encode_passages(inputs.passages))


def test_titles_and_kinds_of_passages(model: DiffRetriever) -> None:
    as_text = model.encode_passages(["Solstice. The sun stands still."])
    same(as_text, model.encode_passages([{"title": "Solstice", "text": "The sun stands still."}]))
    same(as_text, model.encode_passages([Passage("a", "The sun stands still.", title="Solstice")]))
    same(as_text, model.encode_passages("Solstice. The sun stands still."))
    with pytest.raises(InputError, match="needs the key 'text'"):
        model.encode_passages([{"title": "x"}])


HOSTILE = [
    "",
    "   \n\t ",
    "a" * 100_000,
    "word " * 20_000,
    "\x00\x07\x1b control",
    "lone \ud800 surrogate",
    "\u200b\ufeff",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_have_a_defined_result(model: DiffRetriever, text: str) -> None:
    got = model.encode_passages(["before", text, "after"])
    assert len(got) == 3
    assert len(got.vectors(1)) >= 1
    assert np.isfinite(got.dense).all()
    assert np.isfinite(got.sparse.data).all()
    same(got.select([0, 2]), model.encode_passages(["before", "after"]))


def test_an_empty_text_has_vectors_and_no_terms(model: DiffRetriever) -> None:
    got = model.encode_queries(["", "of the and"])
    assert got.sparse.nnz == 0
    assert len(got.vectors(0)) >= 1


def test_no_texts(model: DiffRetriever) -> None:
    got = model.encode_queries([], words=3)
    assert len(got) == 0
    assert got.dim == 64
    assert got.slot_words is not None


def test_special_tokens_in_a_text_are_plain_characters(model: DiffRetriever) -> None:
    plain = model.backbone.tokenizer.encode(["<|mask|><|im_end|>"], parse_special_tokens=False)[0]
    assert not set(plain) & model.backbone.tokenizer.special_ids
    parsed = model.backbone.tokenizer.encode(["<|mask|><|im_end|>"], parse_special_tokens=True)[0]
    assert parsed == [2004, 2002]
    got = model.encode_passages(["<|mask|> and <|im_end|>"])
    assert len(got.vectors(0)) <= 5


@pytest.mark.parametrize("texts", [[None], [3], ["ok", b"bytes"]])
def test_other_types_are_refused(model: DiffRetriever, texts: list[object]) -> None:
    with pytest.raises(InputError, match=r"text \d is"):
        model.encode_queries(texts)  # type: ignore[arg-type]


@given(st.lists(st.text(max_size=60), max_size=6))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_text_keeps_its_row(model: DiffRetriever, texts: list[str]) -> None:
    got = model.encode_queries(texts)
    assert len(got) == len(texts)
    for row, text in enumerate(texts[:2]):
        same(got.select([row]), model.encode_queries([text]))


class Calls:
    """Shapes of everything the vocabulary head was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full: list[torch.Size] = []
        self.rows: list[tuple[torch.Size, torch.Size]] = []
        logits, logits_of_rows = Backbone.logits, Backbone.logits_of_rows

        def spy_logits(backbone: Backbone, hidden: torch.Tensor) -> torch.Tensor:
            self.full.append(hidden.shape)
            return logits(backbone, hidden)

        def spy_rows(backbone: Backbone, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            self.rows.append((hidden.shape, rows.shape))
            return logits_of_rows(backbone, hidden, rows)

        monkeypatch.setattr(Backbone, "logits", spy_logits)
        monkeypatch.setattr(Backbone, "logits_of_rows", spy_rows)


def test_the_head_sees_only_masked_positions_and_content_rows(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-dream-lora-k4", device="cpu")
    calls = Calls(monkeypatch)
    native_head_calls: list[int] = []
    tuned.backbone.model.lm_head.register_forward_hook(lambda *_: native_head_calls.append(1))
    tuned.encode_passages(inputs.passages)
    assert calls.full == []
    assert native_head_calls == []
    assert sum(h[0] for h, _ in calls.rows) == 20
    assert all(h[1] == 4 and r[1] < 120 for h, r in calls.rows)
    tuned.encode_passages(inputs.passages, words=1)
    assert sum(shape[0] for shape in calls.full) == 20 * 4


def test_content_rows_equal_the_full_head_and_a_filter(model: DiffRetriever) -> None:
    hidden = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.randint(0, 2048, (3, 700), generator=torch.Generator().manual_seed(0))
    full = model.backbone.logits(hidden)
    want = full.gather(2, rows[:, None, :].expand(-1, 5, -1))
    torch.testing.assert_close(model.backbone.logits_of_rows(hidden, rows), want)


def test_aligned_readout_reads_one_position_earlier(inputs: Inputs) -> None:
    options = {"query_slots": 4, "passage_slots": 4, "device": "cpu"}
    slot = DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-dream", **options)
    aligned = DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-dream", readout="aligned", **options)
    slot.stops = aligned.stops = "none"
    one, other = slot.encode_queries(inputs.queries), aligned.encode_queries(inputs.queries)
    for i in range(len(one)):
        np.testing.assert_allclose(one.vectors(i)[:-1], other.vectors(i)[1:], atol=1e-5)
    assert slot.provenance.differences(aligned.provenance) == ["readout: 'slot' against 'aligned'"]
    unshifted = DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-llada", readout="aligned", **options)
    assert unshifted.denoising.offset == 0


def test_more_steps_change_the_result_and_one_step_does_not(inputs: Inputs) -> None:
    options = {"query_slots": 4, "passage_slots": 4, "device": "cpu"}
    one = DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-llada", **options)
    four = DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-llada", steps=4, **options)
    one.stops = four.stops = "none"
    first, second = one.encode_queries(inputs.queries), four.encode_queries(inputs.queries)
    assert not np.allclose(first.dense, second.dense, atol=1e-3)
    assert one.provenance.differences(four.provenance) == ["steps: 1 against 4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_slots": 0}, "query_slots is 0; it must be from 1 to 256"),
        ({"passage_slots": 257}, "passage_slots is 257"),
        ({"steps": 0}, "steps is 0"),
        ({"readout": "odd"}, "readout is 'odd'"),
        ({"protocol": "mine"}, "no protocol 'mine'"),
        ({"max_query_length": 60}, "leaves no room for query text"),
        ({"dtype": "int4"}, "dtype is 'int4'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-dream", device="cpu", **options)


def test_causal_models_have_no_masked_positions() -> None:
    with pytest.raises(CheckpointError, match="no masked positions"):
        DiffRetriever.from_pretrained(CHECKPOINTS / "tiny-qwen2", device="cpu")


def test_max_length_bounds_the_whole_sequence_in_the_default_protocol() -> None:
    text = ["word " * 500]
    for protocol, extra in (("default", 0), ("paper", 5 + 3)):
        model = DiffRetriever.from_pretrained(
            CHECKPOINTS / "tiny-dream", passage_slots=5, max_passage_length=128, protocol=protocol, device="cpu"
        )
        ids = model.backbone.tokenizer.encode(text, parse_special_tokens=False)[0]
        assert len(model.frames["passage"].wrap(ids).ids) == 128 + extra


def test_slots_that_are_learned(tmp_path: Path, inputs: Inputs, model: DiffRetriever) -> None:
    slots = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    learned = DiffRetriever(model.backbone, model.settings, slot_embeddings=slots)
    plain, moved = model.encode_queries(inputs.queries), learned.encode_queries(inputs.queries)
    assert not np.allclose(plain.pooled, moved.pooled, atol=1e-2)
    learned.save_pretrained(tmp_path / "saved")
    loaded = DiffRetriever.from_pretrained(tmp_path / "saved", device="cpu")
    same(moved, loaded.encode_queries(inputs.queries))
    same(learned.encode_passages(inputs.passages), loaded.encode_passages(inputs.passages))
    assert loaded.provenance.prompt_hash == learned.provenance.prompt_hash
    with pytest.raises(InputError, match="7 masked positions asked for; this model has learned 6"):
        DiffRetriever.from_pretrained(tmp_path / "saved", passage_slots=7, device="cpu")


def test_slots_that_stand_over_the_text(tmp_path: Path, inputs: Inputs, model: DiffRetriever) -> None:
    spread = DiffRetriever(model.backbone, replace(model.settings, slot_positions="spread"))
    after, over = model.encode_passages(inputs.passages), spread.encode_passages(inputs.passages)
    assert not np.allclose(after.dense, over.dense, atol=1e-2)
    alone = [spread.encode_passages([text]).dense for text in inputs.passages]
    np.testing.assert_allclose(np.concatenate(alone), over.dense, atol=1e-5)
    assert spread.provenance.prompt_hash != model.provenance.prompt_hash
    spread.save_pretrained(tmp_path / "saved")
    loaded = DiffRetriever.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.settings.slot_positions == "spread"
    same(over, loaded.encode_passages(inputs.passages))
    assert loaded.provenance.prompt_hash == spread.provenance.prompt_hash


def test_terms_that_are_stems_with_a_bias(tmp_path: Path, model: DiffRetriever) -> None:
    backbone = copy.deepcopy(model.backbone)
    stems = DiffRetriever(backbone, replace(model.settings, terms="stems"))
    forms = stems.content.pieces(["work", "works", "working"])
    assert {forms["works"], forms["working"]} == {forms["work"]}
    texts = ["the works of it", "it is working"]
    plain = stems.encode_passages(texts, words=3)
    assert plain.sparse.indices.tolist() == [forms["work"][0]] * 2
    bias = torch.zeros(backbone.vocabulary_size)
    bias[forms["work"][0]] = 100.0
    backbone.term_bias = torch.nn.Parameter(bias, requires_grad=False)
    biased = stems.encode_passages(texts, words=3)
    weights = biased.sparse[:, forms["work"][0]].toarray()[:, 0]
    assert (weights > np.log(90)).all()
    assert (weights > plain.sparse[:, forms["work"][0]].toarray()[:, 0] + 1).all()
    np.testing.assert_array_equal(biased.dense, plain.dense)
    assert biased.slot_words(0) == plain.slot_words(0)
    stems.save_pretrained(tmp_path / "saved")
    loaded = DiffRetriever.from_pretrained(tmp_path / "saved", device="cpu")
    same(biased, loaded.encode_passages(texts))
    assert model.term_idf is None
    assert DiffRetriever.from_pretrained(tmp_path / "saved", device="cpu", protocol="paper").term_idf is None
    expected = np.zeros(backbone.vocabulary_size)
    expected[forms["work"][0]] = np.log(101) ** 2
    np.testing.assert_allclose(loaded.term_idf, expected, rtol=1e-5)
    assert loaded.provenance.terms == "stems"
    assert model.provenance.differences(replace(model.provenance, terms="stems")) == ["terms: 'pieces' against 'stems'"]


def test_counts_of_terms_in_passages(tmp_path: Path, model: DiffRetriever) -> None:
    counted = DiffRetriever(model.backbone, replace(model.settings, mean_words=2.0))
    texts = ["the seasons of it", "the seasons and the seasons and the seasons"]
    plain, found = model.encode_passages(texts), counted.encode_passages(texts)
    assert plain.sparse.nnz
    for i, (count, words) in enumerate([(1, 1), (3, 3)]):
        factor = count * 1.9 / (count + 0.9 * (0.6 + 0.4 * words / 2.0))
        np.testing.assert_allclose(found.sparse[i].toarray(), factor * plain.sparse[i].toarray(), rtol=1e-5)
    np.testing.assert_array_equal(found.dense, plain.dense)
    same(model.encode_queries(texts), counted.encode_queries(texts))
    assert counted.provenance.terms == "counted pieces"
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "terms.safetensors").write_bytes(b"of another model")
    counted.save_pretrained(tmp_path / "saved")
    loaded = DiffRetriever.from_pretrained(tmp_path / "saved", device="cpu")
    same(found, loaded.encode_passages(texts))


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-llada-lora-k4", "tiny-dream-lora-k4"])
def test_save_and_load(name: str, tmp_path: Path, inputs: Inputs) -> None:
    model = DiffRetriever.from_pretrained(CHECKPOINTS / name, device="cpu", query_slots=2, passage_slots=4)
    model.save_pretrained(tmp_path)
    loaded = DiffRetriever.from_pretrained(tmp_path, device="cpu")
    same(model.encode_passages(inputs.passages), loaded.encode_passages(inputs.passages))
    assert loaded.settings == model.settings or loaded.settings.expected_ids is None
    assert loaded.stops == model.stops


def test_chunks_are_encoded_in_order_as_they_are_alone(model: DiffRetriever, inputs: Inputs) -> None:
    chunks: list[list[str]] = [inputs.passages[:7], [], inputs.passages[7:8], inputs.passages[8:]]
    seen: list[int] = []

    def reading() -> Iterator[list[str]]:
        for number, chunk in enumerate(chunks):
            seen.append(number)
            yield chunk

    got = []
    for part in model.encode_chunks(reading(), words=2):
        got.append(part)
        assert len(seen) <= len(got) + 3, "the stream is read no further than a few chunks ahead"
    assert [len(part) for part in got] == [7, 0, 1, 12]
    for part, chunk in zip(got, chunks, strict=True):
        same(part, model.encode_passages(chunk, words=2))
    same(Representations.concatenate(got), model.encode_passages(inputs.passages, words=2))
    with pytest.raises(InputError, match="text 0 is int"):
        list(model.encode_chunks([["fine"], [3]]))  # type: ignore[list-item]


def test_a_single_passage_of_any_kind(model: DiffRetriever) -> None:
    wanted = model.encode_passages(["Seasons. The axis."]).dense
    for passage in (Passage("p", "The axis.", "Seasons"), {"title": "Seasons", "text": "The axis."}):
        np.testing.assert_array_equal(model.encode_passages(passage).dense, wanted)
    with pytest.raises(InputError, match="text 0 is NoneType"):
        model.encode_passages([{"title": "Seasons", "text": None}])


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_texts_are_cut_where_the_model_has_no_more_positions(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    asked: dict[str, object] = {"device": "cpu", "max_passage_length": 1000, "protocol": protocol}
    mini = DiffRetriever.from_pretrained("mini", **asked)  # type: ignore[arg-type]
    assert mini.frames["passage"].longest == 512 == mini.backbone.position_count
    assert mini.frames["query"].longest < 512
    assert "the model has 512 positions: longer texts are cut" in caplog.text
    assert mini.encode_passages("axis " * 1000).vectors(0).shape == (16, 384)
