from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffretriever import DiffRetriever
from diffretriever.errors import CheckpointError, CorpusError, InputError
from diffretriever.training.adaptation import run as run_module
from diffretriever.training.adaptation.base import open_adaptable
from diffretriever.training.adaptation.corruption import corrupt, mask_rate
from diffretriever.training.adaptation.objective import (
    MaskedDiffusionModel,
    held_out_cross_entropy,
    masked_diffusion_loss,
)
from diffretriever.training.adaptation.run import RESULTS, adapt
from diffretriever.training.adaptation.settings import AdaptationSettings
from diffretriever.training.adaptation.texts import (
    AdaptationExamples,
    PromptSlots,
    TextWindows,
    collate_corrupted,
    read_texts,
    split_texts,
)
from tests.conftest import CHECKPOINTS
from tests.training.conftest import TOPICS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Sentences in which every word tells its topic, and so its neighbours."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = []
    for i in range(400):
        topic = TOPICS[i % 5]
        lines.append(" ".join(f"the {topic[int(w)]} of" for w in rng.integers(0, 3, 4)) + f" the {topic[0]} .")
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n\n", encoding="utf-8")
    return path


def settings(base, texts, output, **changes):
    small = {
        "steps": 40,
        "batch": 16,
        "length": 24,
        "prompt": "plain",
        "query_slots": 2,
        "passage_slots": 3,
        "learning_rate": 3e-3,
        "held_out": 40,
        "evaluate_every": 20,
        "save_every": 20,
        "bf16": False,
    }
    return AdaptationSettings(base=str(base), texts=(str(texts),), output=str(output), **small | changes)


@pytest.fixture(scope="module")
def finished(base, texts, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapted")
    asked = settings(base, texts, output, steps=40, evaluate_every=20, save_every=20)
    return output, adapt(asked, device="cpu")


def test_rates_are_spread_evenly_from_the_least_to_one():
    rates = [mask_rate(i, 0.3, 0.001) for i in range(1000)]
    counts, _ = np.histogram(rates, bins=10, range=(0, 1))
    assert counts.min() >= 97
    assert counts.max() <= 103
    assert min(rates) >= 0.001
    assert max(mask_rate(i, 0.3, 0.9) for i in range(100)) <= 1
    assert min(mask_rate(i, 0.3, 0.9) for i in range(100)) >= 0.9


def test_tokens_are_masked_with_the_rate_and_only_where_they_may():
    rng = np.random.default_rng(0)
    ids, maskable = list(range(100, 120)), list(range(5, 15))
    drawn = [corrupt(ids, maskable, 0.3, 7, rng) for _ in range(2000)]
    assert np.mean([len(c.positions) for c in drawn]) == pytest.approx(3.0, abs=0.1)
    for c in drawn[:50]:
        assert set(c.positions) <= set(maskable)
        assert c.targets == [ids[p] for p in c.positions]
        assert [c.ids[p] for p in c.positions] == [7] * len(c.positions)
        assert all(c.ids[i] == ids[i] for i in range(20) if i not in c.positions)
    assert drawn[0].weight == pytest.approx(1 / 0.3)
    assert corrupt(ids, maskable, 1.0, 7, rng).positions == maskable


def test_the_loss_of_a_small_example_by_hand():
    """Two texts of 4 and 2 tokens; one token of the first is masked at t = .25, one of the second at t = .5."""
    logits = torch.tensor([[math.log(3.0), 0.0, 0.0], [0.0, 0.0, 0.0]])
    by_hand = (4 * -math.log(3 / 5) + 2 * -math.log(1 / 3)) / 6
    loss = masked_diffusion_loss(logits, torch.tensor([0, 1]), torch.tensor([4.0, 2.0]), torch.tensor(6))
    assert float(loss) == pytest.approx(by_hand, abs=1e-6)


def test_the_loss_of_a_constant_model_is_on_average_log_v():
    rng = np.random.default_rng(1)
    losses = []
    for i in range(4000):
        c = corrupt(list(range(8)), list(range(8)), mask_rate(i, 0.1, 1e-3), 9, rng)
        weights = torch.full((len(c.positions),), c.weight)
        losses.append(
            float(
                masked_diffusion_loss(
                    torch.zeros(len(c.targets), 10),
                    torch.tensor(c.targets, dtype=torch.long),
                    weights,
                    torch.tensor(c.tokens),
                )
            )
        )
    assert np.mean(losses) == pytest.approx(math.log(10), rel=0.05)


def test_held_out_cross_entropy_of_a_constant_model_is_log_v(base):
    model = MaskedDiffusionModel(open_adaptable(base, CPU))
    with torch.no_grad():
        model.backbone.model.get_output_embeddings().weight.zero_()
    windows = TextWindows(model.backbone.tokenizer, 24)
    sequences = [windows.ids(f"the {word} of the river") for topic in TOPICS for word in topic]
    found = held_out_cross_entropy(model, sequences, (0.15, 0.5, 0.9), seed=1)
    assert set(found) == {"0.15", "0.5", "0.9"}
    for value in found.values():
        assert value == pytest.approx(math.log(model.backbone.vocabulary_size), abs=1e-5)


def test_a_causal_model_attends_both_ways_and_predicts_from_the_position_before():
    backbone = open_adaptable(CHECKPOINTS / "tiny-qwen2", CPU)
    assert (backbone.spec.name, backbone.spec.shift, backbone.spec.attention) == ("dream", 1, "full")
    ids = torch.randint(10, 1500, (1, 9), generator=torch.Generator().manual_seed(0))
    keys = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    backbone.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        want = backbone.model(input_ids=ids, attention_mask=keys).logits[0, 3]
        model = MaskedDiffusionModel(backbone)
        got = model.logits(ids, keys[0, 0, :1], torch.tensor([0]), torch.tensor([4]))[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_first_token_of_a_text_is_not_predicted_under_a_shift(texts):
    backbone = open_adaptable(CHECKPOINTS / "tiny-qwen2", CPU)
    windows = TextWindows(backbone.tokenizer, 24)
    assert windows.before == ()
    asked = settings("", texts, "", prompt_share=0.0, least_rate=1.0)
    read = read_texts([texts])
    for shift in (0, 1):
        examples = AdaptationExamples(read, windows, None, asked, backbone.special.mask, 5, shift)
        assert {min(examples[i].positions) for i in range(5)} == {shift}


@pytest.mark.parametrize("extra", [0, 3])
def test_a_mask_token_is_added_where_there_is_none(tmp_path, extra):
    from diffretriever.tokenizer import Tokenizer
    from tests.backbones.published import CONFIGS, native_model, write

    folder = write("llama", tmp_path / "llama", native_model("llama"))
    settings_file = folder / "tokenizer_config.json"
    named = {k: v for k, v in json.loads(settings_file.read_text()).items() if k in ("eos_token", "pad_token")}
    settings_file.write_text(json.dumps(named))
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if "mask" not in t["content"] and "mdm" not in t["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    known = len(Tokenizer.from_folder(folder))
    config = json.loads((folder / "config.json").read_text())
    del config["mask_token_id"]
    rows = known + extra
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = (
            tensors[name][:rows].clone()
            if rows <= CONFIGS["llama"]["vocab_size"]
            else torch.nn.functional.pad(tensors[name], (0, 0, 0, rows - len(tensors[name])))
        )
    from safetensors.torch import save_file

    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    backbone = open_adaptable(folder, CPU)
    assert backbone.special.mask == known
    assert backbone.tokenizer.id_of("<|mask|>") == known
    assert backbone.vocabulary_size == max(rows, known + 1)
    embedding = backbone.model.get_input_embeddings().weight
    torch.testing.assert_close(embedding[known], tensors["model.embed_tokens.weight"].mean(dim=0))
    torch.testing.assert_close(embedding[:known], tensors["model.embed_tokens.weight"][:known])


def test_a_model_of_blocks_is_refused(tmp_path):
    from tests.backbones.published import native_model, write

    folder = write("llada2_moe", tmp_path / "moe", native_model("llada2_moe"))
    with pytest.raises(CheckpointError, match="blocks"):
        open_adaptable(folder, CPU)


def test_cross_entropy_falls_and_everything_is_written_down(finished):
    output, results = finished
    assert [row.step for row in results.rows] == [0, 20, 40]
    first, last = results.rows[0], results.rows[-1]
    assert last.cross_entropy["0.15"] < 0.75 * first.cross_entropy["0.15"]
    assert last.cross_entropy["0.15"] < last.cross_entropy["0.9"]
    assert last.slots < first.slots
    assert last.loss is not None
    assert 0 < results.rows[1].tokens < last.tokens
    written = json.loads((output / RESULTS).read_text())
    assert [row["step"] for row in written["rows"]] == [0, 20, 40]
    assert set(written["about"]["texts"]) == {"train", "held_out", "count"}


def test_the_adapted_model_loads_and_says_words(finished):
    output, _ = finished
    model = DiffRetriever.from_pretrained(output / "model")
    assert (model.provenance.query_slots, model.provenance.passage_slots) == (2, 3)
    made = model.encode_passages(["the piano of the violin"], words=1)
    assert made.vectors(0).shape == (3, 32)
    assert all(slot[0].word for slot in made.slot_words(0))


def test_an_interrupted_run_goes_on_to_the_same_weights(base, texts, tmp_path, monkeypatch):
    asked = {"steps": 8, "save_every": 4, "evaluate_every": 2}
    whole = adapt(settings(base, texts, tmp_path / "whole", **asked), device="cpu")
    measure = run_module.HeldOut.on_step_end

    def stopping(self, args, state, control, **others):
        measure(self, args, state, control, **others)
        if state.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module.HeldOut, "on_step_end", stopping)
        with pytest.raises(KeyboardInterrupt):
            adapt(settings(base, texts, tmp_path / "cut", **asked), device="cpu")
    resumed = adapt(settings(base, texts, tmp_path / "cut", **asked), device="cpu")
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [row.cross_entropy for row in resumed.rows] == [row.cross_entropy for row in whole.rows]
    assert [row.tokens for row in resumed.rows] == [row.tokens for row in whole.rows]
    with pytest.raises(InputError, match="other settings"):
        adapt(settings(base, texts, tmp_path / "cut", **asked, seed=2), device="cpu")


def test_only_numbered_checkpoints_are_gone_on_from(base, texts, tmp_path):
    asked = {"steps": 2, "save_every": 2, "evaluate_every": 2, "held_out": 10}
    adapt(settings(base, texts, tmp_path / "out", **asked), device="cpu")
    kept = tmp_path / "out" / "checkpoints"
    shutil.copytree(kept / "checkpoint-2", kept / "checkpoint-best")
    results = adapt(settings(base, texts, tmp_path / "out", **asked), device="cpu")
    assert [row.step for row in results.rows] == [0, 2]
    assert (kept / "checkpoint-best").is_dir()


def test_texts_are_cut_at_the_positions_that_the_model_has(base, texts, tmp_path, caplog):
    lines = texts.read_text(encoding="utf-8").splitlines()
    long = tmp_path / "long.txt"
    long.write_text("\n".join(" ".join(lines[i : i + 30]) for i in range(0, 200, 2)), encoding="utf-8")
    asked = {"steps": 1, "held_out": 10, "length": 128}
    results = adapt(settings(base, long, tmp_path / "out", **asked), device="cpu")
    assert [row.step for row in results.rows] == [0, 1]
    assert "a text of 128 tokens was asked for and the model has 64 positions" in caplog.text
    windows = TextWindows(open_adaptable(base, CPU).tokenizer, 128, 64)
    assert len(windows.ids(long.read_text(encoding="utf-8"))[0]) == 64


def test_a_causal_model_learns_too(texts, tmp_path):
    asked = {"steps": 10, "evaluate_every": 10, "batch": 8, "prompt": None, "prompt_share": 0.25}
    results = adapt(settings(CHECKPOINTS / "tiny-qwen2", texts, tmp_path / "out", **asked), device="cpu")
    assert results.rows[-1].cross_entropy["0.5"] < 0.9 * results.rows[0].cross_entropy["0.5"]
    model = DiffRetriever.from_pretrained(tmp_path / "out" / "model")
    assert model.backbone.spec.name == "dream"
    assert model.provenance.readout == "aligned"
    assert len(model.encode_queries(["the heart of the river"])) == 1


def test_slots_hold_the_salient_words(base, texts):
    backbone = open_adaptable(base, CPU)
    slots = PromptSlots(backbone, settings(base, texts, ""), read_texts([texts]))
    ids, places = slots.sequence("the piano of the violin . the violin", "passage")
    said = [backbone.tokenizer.text_of(ids[p]) for p in places]
    assert said == ["violin", "piano"]
    assert ids[places[-1] + 1] == backbone.special.mask  # the third slot has no word and is not predicted


def test_examples_depend_on_seed_and_number_alone(base, texts):
    backbone = open_adaptable(base, CPU)
    read = read_texts([texts])
    windows = TextWindows(backbone.tokenizer, 24)

    def examples(**changes):
        asked = settings(base, texts, "", **changes)
        return AdaptationExamples(read, windows, PromptSlots(backbone, asked, read), asked, 4, 50, 0)

    forward, backward = examples(), examples()
    expected = [forward[i] for i in range(20)]
    assert [backward[i] for i in reversed(range(20))] == expected[::-1]
    assert [examples(seed=2)[i] for i in range(20)] != expected


def test_texts_are_read_from_every_format(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"query": ["q"], "positive": ["from parquet"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "from jsonl"}\n{"text": "  "}\n', encoding="utf-8")
    (tmp_path / "c.txt").write_text("from a line\n\n", encoding="utf-8")
    files = [tmp_path / name for name in ("a.parquet", "b.jsonl", "c.txt")]
    assert read_texts(files) == ["from parquet", "from jsonl", "from a line"]
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n{"query": "b"}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"d\.jsonl:2: no text"):
        read_texts([tmp_path / "d.jsonl"])
    with pytest.raises(InputError, match="held out"):
        split_texts(["a", "b", "a"], 2, seed=1)


def test_a_batch_is_padded_and_flat(base):
    rng = np.random.default_rng(0)
    batch = collate_corrupted([corrupt([5, 6, 7], [1], 1.0, 4, rng), corrupt([5, 6], [0, 1], 1.0, 4, rng)], 0)
    assert batch["ids"].tolist() == [[5, 4, 7], [4, 4, 0]]
    assert batch["mask"].tolist() == [[True] * 3, [True, True, False]]
    assert batch["rows"].tolist() == [0, 1, 1]
    assert batch["positions"].tolist() == [1, 0, 1]
    assert batch["targets"].tolist() == [6, 5, 6]
    assert int(batch["tokens"]) == 3


def test_a_checkpoint_that_was_cut_off_is_not_used(base, texts, tmp_path):
    asked = {"steps": 4, "save_every": 2, "evaluate_every": 4}
    first = adapt(settings(base, texts, tmp_path / "out", **asked), device="cpu")
    last = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    (last / "trainer_state.json").unlink()
    (last / "model.safetensors").write_bytes(b"cut o")
    again = adapt(settings(base, texts, tmp_path / "out", **asked), device="cpu")
    assert [row.cross_entropy for row in again.rows] == [row.cross_entropy for row in first.rows]


def test_texts_longer_than_the_model_reads_are_cut(base, texts, tmp_path):
    """The base has 64 positions, and the prompt takes more of them than a plain text's frame."""
    long = tmp_path / "long.txt"
    lines = texts.read_text(encoding="utf-8").splitlines()
    long.write_text("\n".join(" ".join(lines[i : i + 8]) for i in range(0, 200, 2)), encoding="utf-8")
    results = adapt(settings(base, long, tmp_path / "out", steps=2, length=64, held_out=10), device="cpu")
    assert results.rows[-1].slots is not None
    model = DiffRetriever.from_pretrained(tmp_path / "out" / "model")
    assert model.settings.max_passage_length == 64
