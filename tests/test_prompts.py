from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffretriever.errors import PromptError
from diffretriever.prompts import Chat, Prompt

CHATML = Chat.load("chatml")


@pytest.mark.parametrize(
    ("template", "slots", "expected"),
    [
        ("one", 1, "Use one word to"),
        ("one", 4, "Use four words to"),
        ("one", 16, "Use 16 words to"),
        ("three", 1, "Use one word to"),
        ("three", 3, "Use three words to"),
        ("three", 10, "Use ten words to"),
        ("few", 1, "Use a few words to"),
        ("few", 16, "Use a few words to"),
    ],
)
def test_number_words_follow_k(template: str, slots: int, expected: str) -> None:
    suffix = Prompt.load(template).affixes("query", CHATML, slots).suffix
    assert expected in suffix
    plural = "The words are: " in suffix and "words are in lowercase" in suffix
    assert plural == (slots > 1 or template == "few")


def test_text_is_never_searched_for_number_words() -> None:
    affixes = Prompt.load("one").affixes("passage", CHATML, 4)
    assert affixes.prefix.endswith('Passage: "')
    assert affixes.suffix.startswith('". Use four words')


def test_plain_has_no_words() -> None:
    affixes = Prompt.load("plain").affixes("query", Chat.load("bert"), 4)
    assert affixes == ("[CLS]", "")


def test_digest_is_stable_and_sensitive() -> None:
    few = Prompt.load("few")
    digest = few.digest(CHATML, 4, 16)
    assert digest == "e7c36e4bb8ab597b", "an index made with the old digest could no longer be searched"
    assert digest == Prompt.load("few").digest(CHATML, 4, 16)
    assert digest == few.digest(CHATML, 8, 8), "a prompt that names no number reads the same for every K"
    others = [
        Prompt.load("one").digest(CHATML, 4, 16),
        Prompt.load("one").digest(CHATML, 4, 8),
        few.digest(Chat.load("llada"), 4, 16),
        Prompt.from_mapping({**few.to_mapping(), "system": "Be brief."}).digest(CHATML, 4, 16),
        Prompt.from_mapping({**few.to_mapping(), "tail": []}).digest(CHATML, 4, 16),
    ]
    assert len({digest, *others}) == len(others) + 1


def test_own_template_from_a_file(tmp_path: Path) -> None:
    raw = {
        "name": "mine",
        "system": "",
        "query": {"user": "Find: {text}", "assistant": "Keys:"},
        "passage": {"user": "Text: {text}!", "assistant": "Keys:"},
        "tail": ["{end_of_turn}"],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    prompt = Prompt.load(path)
    assert prompt.affixes("passage", CHATML, 2) == (
        "<|im_start|>user\nText: ",
        "!<|im_end|>\n<|im_start|>assistant\nKeys:",
    )
    assert Prompt.from_mapping(prompt.to_mapping()) == prompt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"query": {"user": "{text} {lang}", "assistant": ""}}, r"unknown field \{lang\}"),
        ({"query": {"user": "no text", "assistant": ""}}, r"must hold \{text\} once"),
        ({"query": {"user": "{text}{text}", "assistant": ""}}, r"must hold \{text\} once"),
        ({"query": "{text}"}, "'user' and 'assistant'"),
        ({"tail": "x"}, "'tail' must be a list"),
    ],
)
def test_bad_templates(change: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prompt.from_mapping({**Prompt.load("few").to_mapping(), **change})


def test_missing_key_and_missing_file(tmp_path: Path) -> None:
    raw = dict(Prompt.load("few").to_mapping())
    del raw["system"]
    with pytest.raises(PromptError, match="'system' is missing"):
        Prompt.from_mapping(raw)
    with pytest.raises(PromptError, match="no prompt 'nope'; give one of bare, few, one, plain, sides, three"):
        Prompt.load("nope")
    broken = tmp_path / "broken.json"
    broken.write_text("[1")
    with pytest.raises(PromptError, match="not a JSON file"):
        Prompt.load(broken)
