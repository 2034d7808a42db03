"""Shapes: models of published sizes with random weights, made on the device, for measuring time without a download.

The time of a forward pass depends on the shape of a model and not on its values. The tokeniser is that of the shipped
model with the special tokens of the chat formats added, so texts and prompts are real ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.hardware import default_device
from diffretriever.backbones.loading import load_backbone, native_config
from diffretriever.backbones.specs import spec_for
from diffretriever.errors import InputError
from diffretriever.tokenizer import Tokenizer

_QWEN2_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 30720,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}

#: Name -> config.json of the published model, as far as it decides the computation; "tiny" ones are for trying out.
SHAPES: Mapping[str, Mapping[str, object]] = {
    "dream-7b": {"model_type": "Dream", **_QWEN2_7B},
    "llada-8b": {
        "model_type": "llada",
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 32,
        "mlp_hidden_size": 12288,
        "embedding_size": 126464,
        "max_sequence_length": 4096,
        "activation_type": "silu",
        "weight_tying": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    },
    "qwen2.5-7b": {"model_type": "qwen2", **_QWEN2_7B},
    "llama3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "small-dream": {
        "model_type": "Dream",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 1536,
        "vocab_size": 152064,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    },
    "tiny-dream-wide": {"model_type": "Dream", **_TINY, "num_hidden_layers": 4, "vocab_size": 152064},
    "tiny-dream": {"model_type": "Dream", **_TINY},
    "tiny-qwen2": {"model_type": "qwen2", **_TINY},
}

#: Spread of the random weights, that of the published initialisations.
_DEVIATION = 0.02
_SPECIAL = ("<|mask|>", "<|mdm_mask|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>")
_LLAMA_SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|startoftext|>")


@dataclass(frozen=True)
class RandomSource:
    """The files of a published model as far as its time depends on them: its config, and weights drawn at random.

    Attributes:
        shape: a name of `SHAPES`.
        device: where the weights are drawn.
        dtype: dtype of the weights.
        seed: seed of the weights.
    """

    shape: str
    device: torch.device
    dtype: torch.dtype
    seed: int

    @property
    def path(self) -> Path:
        """The name of the shape, for messages."""
        return Path(f"shape {self.shape}")

    def config(self) -> dict[str, Any]:
        """Return the config as config.json has it."""
        tokenizer = self.tokenizer()
        special = {"eos_token_id": tokenizer.id_of("<|endoftext|>"), "pad_token_id": tokenizer.id_of("<|endoftext|>")}
        return {**SHAPES[self.shape], **special}

    def tokenizer(self) -> Tokenizer:
        """Return the shipped model's tokeniser with the special tokens of the chat formats."""
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as RustTokenizer

        folder = files("diffretriever") / "models" / "mini"
        rust = RustTokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        added = [*_SPECIAL, *_LLAMA_SPECIAL]
        rust.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in added])
        return Tokenizer(rust, {"eos_token": "<|endoftext|>", "additional_special_tokens": added})

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor of the native class: matrices of normal numbers, vectors of ones and zeros."""
        import transformers

        config = self.config()
        spec = spec_for(str(config["model_type"]))
        with torch.device("meta"):
            model = getattr(transformers, spec.architecture)(native_config(spec, config, self.path))
        generator = torch.Generator(self.device).manual_seed(self.seed)
        # Asked of the native class: published configs have their own words for it.
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
        for name, parameter in model.named_parameters():
            if name in tied:
                continue
            tensor = torch.empty(parameter.shape, device=self.device, dtype=self.dtype)
            if parameter.dim() > 1:
                tensor.normal_(0.0, _DEVIATION, generator=generator)
            else:
                tensor.fill_(0.0 if name.endswith("bias") else 1.0)
            yield name, tensor

    def digest(self) -> str:
        """Return a hash of everything that decides the weights."""
        what = json.dumps([SHAPES[self.shape], self.seed, str(self.dtype), self.device.type], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()


def random_backbone(
    shape: str, *, device: torch.device | None = None, dtype: torch.dtype | None = None, seed: int = 1
) -> Backbone:
    """Return a backbone of a published shape with random weights, loaded as a published one is.

    Args:
        shape: a name of `SHAPES`.
        device: where the weights go; the first GPU if there is one, else the CPU.
        dtype: dtype of the weights; bf16 on a GPU, else fp32.
        seed: seed of the weights.

    Raises:
        InputError: there is no such shape.
    """
    if shape not in SHAPES:
        raise InputError(f"no shape {shape!r}; choose one of {', '.join(SHAPES)}")
    device = device or default_device()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    return load_backbone(RandomSource(shape, device, dtype, seed), device=device, dtype=dtype)
