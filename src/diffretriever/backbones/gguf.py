"""GgufSource: a causal model in one GGUF file, its tensors dequantised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffretriever.backbones.sources import weights_digest
from diffretriever.errors import CheckpointError, MissingExtraError, blaming
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
#: Types of tokens that text is searched for before it is cut: those that text never spells out, such as <|im_end|>, and
#: those that it may, such as <tool_call>.
_CONTROL, _USER_DEFINED = 3, 4
#: What the fields that change rotary positions may be, first what their absence means.
_PLAIN = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1, 0),
    "rope.scale_linear": (1, 0),
    "rope.scaling.attn_factor": (1,),
}


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
        with self._named():
            self._reader: GGUFReader = GGUFReader(path)
            self._architecture = str(self._field("general.architecture"))
        if self._architecture not in _PAIRED:
            raise CheckpointError(
                f"{path}: architecture {self._architecture!r}; read are {', '.join(_PAIRED)}. Convert the model to a "
                "folder with config.json and safetensors"
            )

    def config(self) -> dict[str, Any]:
        """Return the config as config.json would have it.

        Raises:
            CheckpointError: a number is missing or none, or positions are scaled or part of a head is rotated, which
                is not supported.
        """
        with self._named():
            config = {name: self._number(key) for name, key in _NUMBERS.items()}
            heads, width = config["num_attention_heads"], config["hidden_size"]
            config["num_key_value_heads"] = self._number("attention.head_count_kv", heads)
            for name, value in config.items():
                if not isinstance(value, int | float) or value <= 0:
                    raise CheckpointError(f"{self.path}: {name} is {value!r}, not a number above 0; restore the file")
            head_dim = self._number("attention.key_length", width // heads)
            self._check_rotation(head_dim)
            return {
                **config,
                **{f"{role}_token_id": token_id for role, token_id in self._roles.items()},
                "model_type": self._architecture,
                "head_dim": head_dim,
                "rope_theta": self._number("rope.freq_base", 10000.0),
                "vocab_size": len(self._tokens),
                "tie_word_embeddings": "output.weight" not in self._names,
            }

    def _check_rotation(self, head_dim: int) -> None:
        """Raise if positions are rotated in another way than whole heads by plain frequencies."""
        for key, plain in {**_PLAIN, "rope.dimension_count": (head_dim,)}.items():
            if (value := self._number(key, plain[0])) not in plain:
                raise CheckpointError(
                    f"{self.path}: rotary positions are scaled or rotate part of a head: {self._architecture}.{key} is "
                    f"{value!r}, of a GGUF file only {plain[0]!r} is read; convert the model to a folder"
                )
        if "rope_freqs.weight" in self._names:
            raise CheckpointError(
                f"{self.path}: rotary positions are scaled by the tensor rope_freqs.weight, which is not supported; "
                "convert the model to a folder"
            )

    def tokenizer(self) -> Tokenizer:
        """Return the tokeniser, byte-level pair encoding.

        Raises:
            CheckpointError: it is of another kind.
        """
        from tokenizers.models import BPE
        from tokenizers.processors import TemplateProcessing

        with self._named():
            kind = self._field("tokenizer.ggml.model")
            if kind != "gpt2":
                raise CheckpointError(f"{self.path}: tokeniser of kind {kind!r}; only byte-level BPE ('gpt2') is read")
            merges = [(a, b) for a, _, b in (m.partition(" ") for m in self._field("tokenizer.ggml.merges"))]
            types = enumerate(zip(self._tokens, self._field("tokenizer.ggml.token_type"), strict=True))
            added = [(i, t, kind == _CONTROL) for i, (t, kind) in types if kind in (_CONTROL, _USER_DEFINED)]
            bpe = BPE(vocab={t: i for i, t in enumerate(self._tokens)}, merges=merges)
            rust = byte_level_bpe(bpe, str(self._field("tokenizer.ggml.pre", "")), added, self.path)
            if self._field("tokenizer.ggml.add_bos_token", False):
                begin = self._tokens[self._field("tokenizer.ggml.bos_token_id")]
                pair = (begin, self._roles["bos"])
                rust.post_processor = TemplateProcessing(single=f"{begin} $A", pair=None, special_tokens=[pair])
            named = {f"{role}_token": self._tokens[i] for role, i in self._roles.items()}
            return Tokenizer(rust, {**named, "additional_special_tokens": [t for _, t, control in added if control]})

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors in fp32, under the names of the format, q and k in the order of the native classes."""
        from gguf.quants import dequantize

        for tensor in self._reader.tensors:
            with blaming(f"{self.path}: the tensor {tensor.name!r} cannot be read"):
                value = dequantize(tensor.data, tensor.tensor_type)
                if _PAIRED[self._architecture] and ".attn_q." in tensor.name:
                    value = _halves(value, self._number("attention.head_count"))
                elif _PAIRED[self._architecture] and ".attn_k." in tensor.name:
                    heads = self._number("attention.head_count")
                    value = _halves(value, self._number("attention.head_count_kv", heads))
                value = value.copy()  # of a file's pages that may only be read
            yield tensor.name, torch.from_numpy(value)

    def digest(self) -> str:
        """Return a quick hash of the file."""
        return weights_digest([self.path])

    def _named(self) -> AbstractContextManager[None]:
        return blaming(f"{self.path}: not a readable GGUF file")

    @cached_property
    def _roles(self) -> dict[str, int]:
        """The ids of special tokens by role."""
        found = {role: self._field(f"tokenizer.ggml.{name}_token_id", None) for role, name in _ROLES.items()}
        for role, token_id in found.items():
            if token_id is not None and not 0 <= token_id < len(self._tokens):
                raise CheckpointError(
                    f"{self.path}: {role}_token_id is {token_id}, but there are {len(self._tokens)} tokens; restore "
                    "the file"
                )
        return {role: int(token_id) for role, token_id in found.items() if token_id is not None}

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


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows [heads * d, ...] of q or k with each head's two rotary halves one after the other."""
    size = rows.shape[0] // heads
    halves: np.ndarray = rows.reshape(heads, size // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    return halves
