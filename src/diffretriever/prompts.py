"""Prompt: the words around a text, per side; templates and chat formats are JSON files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, cast

from diffretriever.conventions import Side, SlotPositions
from diffretriever.errors import PromptError

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COUNTED = re.compile(rf"\b(?:{'|'.join(_NUMBERS)}|\d+)\s+words?\b")
_TEMPLATE_KEYS = {"name", "about", "system", "query", "passage", "tail"}


class Affixes(NamedTuple):
    """What stands before and after a text, as strings."""

    prefix: str
    suffix: str


@dataclass(frozen=True)
class Chat:
    """How a family of models writes a conversation.

    Attributes:
        name: name of the file.
        begin: text before the first turn.
        header: text before a turn's content; {role} is replaced.
        end: text after a turn's content.
        end_of_turn: the token that closes a turn.
        roles: what the family calls "system", "user" and "assistant".
    """

    name: str
    begin: str
    header: str
    end: str
    end_of_turn: str
    roles: Mapping[str, str]

    @classmethod
    def load(cls, name: str) -> Chat:
        """Return the bundled chat format of that name."""
        raw = _read_json("chats", name)
        roles = raw.pop("roles")
        return cls(**{k: str(v) for k, v in raw.items()}, roles=cast(Mapping[str, str], roles))

    @classmethod
    def fitting(cls, name: str, id_of: Callable[[str], int | None]) -> Chat:
        """Return the chat format of that name, or another bundled one if only its end-of-turn token exists.

        Models of one architecture are tuned with different formats (SmolLM2 is a Llama that speaks ChatML).

        Args:
            name: the usual format of the family.
            id_of: the vocabulary: id of a token's exact text, or None.

        Raises:
            PromptError: the vocabulary knows no bundled format.
        """
        names = dict.fromkeys([name, *_bundled("chats")])
        for chat in map(cls.load, names):
            if chat.end_of_turn and id_of(chat.end_of_turn) is not None:
                return chat
        raise PromptError(
            f"the vocabulary holds no end-of-turn token of the chat formats {', '.join(names)}; a model tuned to "
            "follow instructions is needed"
        )

    @classmethod
    def usual(cls, name: str, id_of: Callable[[str], int | None]) -> Chat:
        """Return the fitting chat format; that of the name where the vocabulary knows none."""
        try:
            return cls.fitting(name, id_of)
        except PromptError:
            return cls.load(name)

    def opening(self, role: str) -> str:
        """Return the text before a turn of `role`."""
        return self.header.format(role=self.roles[role])


@dataclass(frozen=True)
class SideTemplate:
    """The user turn of one side, with {text} in it, and how the assistant's turn opens."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Prompt:
    """A retrieval prompt of both sides (docs/method.md, 1).

    Attributes:
        name: name of the template.
        system: the system turn; left out when empty.
        query: template of the query side.
        passage: template of the passage side.
        tail: what an answer would end with; {end_of_turn} and {end_of_sequence} stand for the family's tokens.
    """

    name: str
    system: str
    query: SideTemplate
    passage: SideTemplate
    tail: tuple[str, ...]

    @classmethod
    def load(cls, name_or_path: str | Path) -> Prompt:
        """Return a bundled template by name ("few", "one", "three", "plain" ...), or one from a JSON file."""
        raw = _read_json("prompts", str(name_or_path))
        return cls.from_mapping(raw, where=str(name_or_path))

    @classmethod
    def choose(
        cls, wanted: str | Mapping[str, object] | None, default: str, query_slots: int, passage_slots: int
    ) -> Prompt:
        """Return the template asked for, else the default; its "few" becomes "one" for one slot on both sides."""
        if isinstance(wanted, Mapping):
            return cls.from_mapping(wanted)
        if wanted is None and default == "few" and query_slots == passage_slots == 1:
            return cls.load("one")
        return cls.load(wanted or default)

    @classmethod
    def from_mapping(cls, raw: Mapping[str, object], where: str = "prompt") -> Prompt:
        """Return the template that a parsed JSON object describes.

        Raises:
            PromptError: a key is unknown or missing, a value is of another type, or {text} does not occur once.
        """
        if unknown := sorted(set(raw) - _TEMPLATE_KEYS):
            raise PromptError(f"{where}: unknown key {unknown[0]!r}; a prompt has {', '.join(sorted(_TEMPLATE_KEYS))}")
        if missing := sorted(_TEMPLATE_KEYS - {"about"} - set(raw)):
            raise PromptError(f"{where}: the key {missing[0]!r} is missing")
        tail = raw["tail"]
        if not isinstance(tail, list | tuple) or not all(isinstance(t, str) for t in tail):
            raise PromptError(f"{where}: 'tail' must be a list of strings, got {tail!r}")
        return cls(
            name=str(raw["name"]),
            system=str(raw["system"]),
            query=_side(raw["query"], f"{where}: query"),
            passage=_side(raw["passage"], f"{where}: passage"),
            tail=tuple(tail),
        )

    def affixes(self, side: Side, chat: Chat, slots: int) -> Affixes:
        """Return what stands around a text of `side`, its number words set to `slots`."""
        template = _counted(self.query if side == "query" else self.passage, slots)
        before, after = template.user.split("{text}")
        system = f"{chat.opening('system')}{self.system}{chat.end}" if self.system else ""
        turn_end = chat.end + chat.opening("assistant") if template.assistant else ""
        return Affixes(
            prefix=chat.begin + system + chat.opening("user") + before,
            suffix=after + turn_end + template.assistant,
        )

    def digest(self, chat: Chat, query_slots: int, passage_slots: int, slot_positions: SlotPositions = "after") -> str:
        """Return a stable hash of everything the model sees around the texts of both sides, and where."""
        seen = [
            self.affixes("query", chat, query_slots),
            self.affixes("passage", chat, passage_slots),
            [t.replace("{end_of_turn}", chat.end_of_turn) for t in self.tail],
            *([] if slot_positions == "after" else [slot_positions]),
        ]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]

    def to_mapping(self) -> dict[str, object]:
        """Return the JSON object that `from_mapping` reads."""
        return {**asdict(self), "tail": list(self.tail)}


def _side(raw: object, where: str) -> SideTemplate:
    if not isinstance(raw, Mapping) or set(raw) != {"user", "assistant"}:
        raise PromptError(f"{where} must be an object with the keys 'user' and 'assistant', got {raw!r}")
    side = SideTemplate(user=str(raw["user"]), assistant=str(raw["assistant"]))
    if side.user.count("{text}") != 1:
        raise PromptError(f"{where}: 'user' must hold {{text}} once, got {side.user!r}")
    if unknown := re.findall(r"\{[^{}]*\}", side.user.replace("{text}", "") + side.assistant):
        raise PromptError(f"{where}: unknown field {unknown[0]}; only {{text}} is filled in")
    return side


def _counted(template: SideTemplate, slots: int) -> SideTemplate:
    """Make the number words say `slots`; a template that names no number ("a few words") stays as it is."""
    if not _COUNTED.search(template.user):
        return template
    number = _NUMBERS[slots - 1] if slots <= len(_NUMBERS) else str(slots)

    def adapt(text: str) -> str:
        text = _COUNTED.sub(f"{number} word" if slots == 1 else f"{number} words", text)
        old, new = ("words are", "word is") if slots == 1 else ("word is", "words are")
        return text.replace(old, new)

    return SideTemplate(user=adapt(template.user), assistant=adapt(template.assistant))


def _bundled(kind: str) -> list[str]:
    folder = files("diffretriever") / "data" / kind
    return sorted(p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json"))


def _read_json(kind: str, name: str) -> dict[str, object]:
    folder = files("diffretriever") / "data" / kind
    bundled = _bundled(kind)
    source = folder / f"{name}.json" if name in bundled else Path(name)
    if not source.is_file():
        raise PromptError(f"no {kind[:-1]} {name!r}; give one of {', '.join(bundled)}, or the path of a JSON file")
    try:
        raw = json.loads(source.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PromptError(f"{name}: not a JSON file: {error}") from error
    if not isinstance(raw, dict):
        raise PromptError(f"{name}: must hold a JSON object, got {type(raw).__name__}")
    return raw
