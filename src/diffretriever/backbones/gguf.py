"""GgufSource: a causal model in one GGUF file, its tensors dequantised."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffretriever.backbones.sources import weights_digest
from diffretriever.errors import CheckpointError, MissingExtraError
from diffretriever.tokenizer import Tokenizer, byte_level_bpe

if TYPE_CHECKING:
    from gguf import GGUFReader

#: Architectures that are read, which are also values of "model_type", and whether their files hold the rows of q and k
#: in pairs (GGUF's order for rotary embeddings) instead of halves.
_PAIRED = {"llama": True, "qwen2": False}
#: config.json's names of the numbers of a file.
_NUMBERS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
#: Roles of special tokens -> their names in the format.
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
#: Type of a token that text never spells out, such as <|im_end|>.
_CONTROL = 3


class GgufSource:
    """A GGUF file of Llama's or Qwen2's shape, of any quantisation that the package `gguf` undoes.

    Raises:
        CheckpointError: the file cannot be read, or is of another architecture.
        MissingExtraError: the package `gguf` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise MissingExtraError("gguf", "gguf", "reading a GGUF file") from error
        try:
            self._reader: GGUFReader = GGUFReader(path)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(f"{path}: not a readable GGUF file: {error}; restore the file") from error
        self._architecture = str(self._field("general.architecture"))
        if self._architecture not in _PAIRED:
            raise CheckpointError(
                f"{path}: architecture {self._architecture!r}; read are {', '.join(_PAIRED)}. Convert the model to a "
                "folder with config.json and safetensors"
            )

    def config(self) -> dict[str, Any]:
        """Return the config as config.json would have it.

        Raises:
            CheckpointError: a number is missing, or positions are scaled, which is not supported.
        """
        if self._number("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in self._names:
            raise CheckpointError(f"{self.path}: rotary positions are scaled, which is read from folders only")
        config = {name: self._number(key) for name, key in _NUMBERS.items()}
        heads, width = config["num_attention_heads"], config["hidden_size"]
        roles = {f"{r}_token_id": self._field(f"tokenizer.ggml.{n}_token_id", None) for r, n in _ROLES.items()}
        return {
            **config,
            **{name: token_id for name, token_id in roles.items() if token_id is not None},
            "model_type": self._architecture,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": self._number("attention.key_length", width // heads),
            "rope_theta": self._number("rope.freq_base", 10000.0),
            "vocab_size": len(self._tokens),
            "tie_word_embeddings": "output.weight" not in self._names,
        }

    def tokenizer(self) -> Tokenizer:
        """Return the tokeniser, byte-level pair encoding.

        Raises:
            CheckpointError: it is of another kind.
        """
        from tokenizers.models import BPE
        from tokenizers.processors import TemplateProcessing

        kind = self._field("tokenizer.ggml.model")
        if kind != "gpt2":
            raise CheckpointError(f"{self.path}: tokeniser of kind {kind!r}; only byte-level BPE ('gpt2') is read")
        merges = [(a, b) for a, _, b in (m.partition(" ") for m in self._field("tokenizer.ggml.merges"))]
        types = self._field("tokenizer.ggml.token_type")
        special = [(i, t) for i, (t, kind) in enumerate(zip(self._tokens, types, strict=True)) if kind == _CONTROL]
        bpe = BPE(vocab={t: i for i, t in enumerate(self._tokens)}, merges=merges)
        split = str(self._field("tokenizer.ggml.pre", ""))
        rust = byte_level_bpe(bpe, split, special, self.path)
        ids = {role: self._field(f"tokenizer.ggml.{name}_token_id", None) for role, name in _ROLES.items()}
        named = {f"{role}_token": self._tokens[i] for role, i in ids.items() if i is not None}
        if self._field("tokenizer.ggml.add_bos_token", False):
            begin = (named["bos_token"], int(ids["bos"]))
            rust.post_processor = TemplateProcessing(single=f"{begin[0]} $A", pair=None, special_tokens=[begin])
        return Tokenizer(rust, {**named, "additional_special_tokens": [t for _, t in special]})

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors in fp32, under the names of the format, q and k in the order of the native classes."""
        from gguf.quants import dequantize

        for tensor in self._reader.tensors:
            value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            if _PAIRED[self._architecture] and ".attn_q." in tensor.name:
                value = _halves(value, self._number("attention.head_count"))
            elif _PAIRED[self._architecture] and ".attn_k." in tensor.name:
                heads = self._number("attention.head_count")
                value = _halves(value, self._number("attention.head_count_kv", heads))
            yield tensor.name, value

    def digest(self) -> str:
        """Return a quick hash of the file."""
        return weights_digest([self.path])

    @cached_property
    def _tokens(self) -> list[str]:
        tokens: list[str] = self._field("tokenizer.ggml.tokens")
        return tokens

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(t.name for t in self._reader.tensors)

    def _number(self, key: str, default: Any = ...) -> Any:  # noqa: ANN401  (a field may hold anything)
        return self._field(f"{self._architecture}.{key}", default)

    def _field(self, key: str, default: Any = ...) -> Any:  # noqa: ANN401
        field = self._reader.fields.get(key)
        if field is not None:
            return field.contents()
        if default is ...:
            raise CheckpointError(f"{self.path}: the field {key!r} is missing; restore the file, or convert it anew")
        return default


def _halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows [heads * d, ...] of q or k with each head's two rotary halves one after the other."""
    size = rows.shape[0] // heads
    return rows.reshape(heads, size // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
