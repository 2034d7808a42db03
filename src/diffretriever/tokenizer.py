"""Tokenizer: text to ids and back, with the special tokens of a model folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffretriever.errors import CheckpointError, blaming
from diffretriever.json_files import read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import PreTokenizer

# Qwen2's split of text before byte-level BPE: contractions, words with one leading sign, single digits, signs, spaces.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMED = ("bos_token", "eos_token", "pad_token", "mask_token", "cls_token", "sep_token", "unk_token")


class Tokenizer:
    """A model folder's tokeniser, without remote code.

    Attributes:
        named: special tokens by role, as tokenizer_config.json names them ("eos_token" -> "<|endoftext|>").
        special_ids: ids of all named and additional special tokens.
    """

    def __init__(self, rust: RustTokenizer, settings: dict[str, Any]) -> None:
        from tokenizers import Tokenizer as RustTokenizer

        rust.no_padding()
        rust.no_truncation()
        self._parsing = rust
        # A second tokeniser that reads "<|im_end|>" in a user's text as plain characters, never as the token.
        self._literal = RustTokenizer.from_str(rust.to_str())
        self._literal.encode_special_tokens = True
        self.named = {role: text for role in _NAMED if (text := _content(settings.get(role)))}
        extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
        extra = list(extra.values()) if isinstance(extra, dict) else extra
        texts = [*self.named.values(), *(_content(t) for t in extra)]
        self.special_ids = frozenset(i for t in texts if t and (i := rust.token_to_id(t)) is not None)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Return the tokeniser of a folder: tokenizer.json, or vocab.json + merges.txt of the Qwen2 family."""
        from tokenizers import Tokenizer as RustTokenizer

        settings: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                settings |= read_json_object(folder / name)
        if (folder / "tokenizer.json").is_file():
            with blaming(f"{folder / 'tokenizer.json'}: not a readable tokeniser"):
                return cls(RustTokenizer.from_file(str(folder / "tokenizer.json")), settings)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return cls(_qwen2_bpe(folder, settings), settings)
        raise CheckpointError(f"{folder}: no tokenizer.json, and no vocab.json with merges.txt")

    def encode(self, texts: Sequence[str], *, parse_special_tokens: bool) -> list[list[int]]:
        """Return the ids of each text, nothing added around them.

        Lone surrogates, which no UTF-8 text can hold, are read as U+FFFD.
        """
        rust = self._parsing if parse_special_tokens else self._literal
        clean = [_SURROGATE.sub("\ufffd", t) for t in texts]
        return [e.ids for e in rust.encode_batch_fast(clean, add_special_tokens=False)]

    def encode_words(self, words: list[str]) -> list[list[int]]:
        """Return the ids of each word tokenised alone."""
        return self.encode(words, parse_special_tokens=False)

    def with_mask(self, token: str) -> Tokenizer:
        """Return this tokeniser with a mask token of that text, which is added if the vocabulary lacks it."""
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as RustTokenizer

        rust = RustTokenizer.from_str(self._parsing.to_str())
        rust.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        extra = [self._parsing.id_to_token(i) for i in sorted(self.special_ids)]
        return Tokenizer(rust, {**self.named, "mask_token": token, "additional_special_tokens": extra})

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids that this tokeniser itself puts before and after a text, such as [CLS] and [SEP]."""
        text = self._parsing.encode("a", add_special_tokens=False).ids
        whole = self._parsing.encode("a", add_special_tokens=True).ids
        start = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
        return tuple(whole[:start]), tuple(whole[start + len(text) :])

    def id_of(self, token: str) -> int | None:
        """Return the id of a token's exact text, or None."""
        found: int | None = self._parsing.token_to_id(token)
        return found

    def text_of(self, token_id: int) -> str:
        """Return a vocabulary item as people read it: stripped of spaces, "##" and byte marks."""
        raw: str | None = self._parsing.id_to_token(token_id)
        if raw is None:
            return f"<{token_id}>"
        if token_id in self.special_ids or raw.startswith("##"):
            return raw
        text: str = self._parsing.decode([token_id], skip_special_tokens=False)
        return text.strip() or raw

    def __len__(self) -> int:
        size: int = self._parsing.get_vocab_size(with_added_tokens=True)
        return size

    @cached_property
    def digest(self) -> str:
        """A hash of the whole tokeniser."""
        return hashlib.sha256(self._parsing.to_str().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and the names of the special tokens."""
        self._parsing.save(str(folder / "tokenizer.json"))
        special = {str(self._parsing.id_to_token(i)) for i in self.special_ids}
        extra = sorted(special - set(self.named.values()))
        about = {**self.named, "additional_special_tokens": extra}
        (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _content(token: object) -> str | None:
    """Return a special token's text; folders write it as a string or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _added_tokens(folder: Path, settings: dict[str, Any]) -> Iterator[tuple[int, str, bool]]:
    listed = settings.get("added_tokens_decoder")
    if listed:
        yield from sorted((int(i), t["content"], True) for i, t in listed.items())
    elif (folder / "added_tokens.json").is_file():
        tokens = read_json_object(folder / "added_tokens.json")
        yield from sorted((i, t, True) for t, i in tokens.items())


def _qwen2_bpe(folder: Path, settings: dict[str, Any]) -> RustTokenizer:
    """Build Qwen2's tokeniser, which Dream shares, from its vocabulary and merges."""
    from tokenizers import models

    with blaming(f"{folder / 'vocab.json and merges.txt'}: not a readable tokeniser"):
        bpe = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        return byte_level_bpe(bpe, "qwen2", _added_tokens(folder, settings), folder)


def byte_level_bpe(bpe: BPE, split: str, added: Iterable[tuple[int, str, bool]], where: Path) -> RustTokenizer:
    """Return a byte-level tokeniser.

    Args:
        bpe: vocabulary and merges.
        split: how text is cut before merging: as the "qwen2" or as the "smollm" family does.
        added: id and text of each token that text is searched for before it is cut, and whether it is special: a
            user's text never spells it.
        where: what to name in an error.

    Raises:
        CheckpointError: the split is unknown, or an added token cannot have its id.
    """
    from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as RustTokenizer

    rust = RustTokenizer(bpe)
    if split == "qwen2":
        rust.normalizer = normalizers.NFC()
        cut: PreTokenizer = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated")
    elif split == "smollm":
        cut = pre_tokenizers.Digits(individual_digits=True)
    else:
        raise CheckpointError(f"{where}: text is split as {split!r}, known are 'qwen2' and 'smollm'; convert the file")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == "smollm")
    rust.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    rust.decoder = decoders.ByteLevel()
    for token_id, text, special in added:
        rust.add_tokens([AddedToken(text, normalized=False, special=special)])
        if rust.token_to_id(text) != token_id:
            got = rust.token_to_id(text)
            raise CheckpointError(f"{where}: the added token {text!r} should have id {token_id}, but got {got}")
    return rust
