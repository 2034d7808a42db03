"""Base: the model that training starts from, trainable, with a vocabulary head and slot embeddings if wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.lora import is_adapter
from diffretriever.backbones.sources import FolderSource
from diffretriever.backbones.specs import spec_for
from diffretriever.checkpoint import RetrieverSettings, locate
from diffretriever.errors import CheckpointError
from diffretriever.json_files import read_json_object
from diffretriever.pretrained import dtype_named, open_checkpoint
from diffretriever.sequences import SpecialIds
from diffretriever.tokenizer import Tokenizer
from diffretriever.training.model_settings import ModelSettings
from diffretriever.training.pooling_layer import append_pooling_layer


@dataclass(frozen=True)
class Base:
    """A backbone whose weights may be trained, what its checkpoint should record, and slot embeddings if it has any.

    Attributes:
        backbone: the backbone.
        settings: what its checkpoint should record.
        slot_embeddings: [2, K_max, D]; None for none.
        fingerprint: quick digest of the weights that it was opened with; "" where it has none.
    """

    backbone: Backbone
    settings: RetrieverSettings
    slot_embeddings: torch.Tensor | None
    fingerprint: str = ""


def open_base(settings: ModelSettings, device: torch.device, *, bf16: bool = False) -> Base:
    """Return the model that training starts from.

    A BERT encoder without a vocabulary head gets one that copies its input if the system reads a head: see
    `with_copying_head`.

    Args:
        settings: which model, and how it is read.
        device: where its weights go.
        bf16: whether the forward pass is in bf16; frozen weights under LoRA are then kept in it.

    Raises:
        CheckpointError: files are missing, foreign or of another digest.
    """
    folder = locate(settings.base)
    if settings.sha256 is not None:
        check_digest(folder, settings.sha256)
    named = {"auto": "bfloat16" if bf16 and settings.lora is not None else "float32"}
    dtype = dtype_named(named.get(settings.dtype, settings.dtype)) or torch.float32
    attention = attention_for(settings.attention, device)
    given = {k: v for k, v in asdict(settings.checkpoint_settings()).items() if v is not None}
    reads_head = settings.system in ("diffretriever", "promptreps")
    if reads_head and folder.is_dir() and lacks_head(folder):
        backbone = with_copying_head(folder, "eager" if attention == "auto" else attention).to(device, dtype)
        base = Base(backbone, replace(RetrieverSettings(), **given), None, FolderSource(folder).digest()[:16])
    else:
        opened = open_checkpoint(settings.base, given, device=device, dtype=dtype, attention=attention)
        base = Base(opened.backbone, opened.settings, opened.slot_embeddings, opened.backbone.fingerprint)
    if settings.pooling_layer:
        append_pooling_layer(base.backbone)
    base.backbone.requires_grad_(True)
    set_dropout(base.backbone, settings.dropout)
    return base


def attention_for(wanted: str, device: torch.device) -> str:
    """Return the attention of `load_backbone` for that of the settings.

    On a CPU the fused kernel's backward pass costs four times that of plain products at a few hundred tokens.
    """
    if wanted == "auto":
        return "eager" if device.type == "cpu" else "sdpa"
    return "auto" if wanted == "packed" else wanted


def check_digest(folder: Path, sha256: str) -> None:
    """Raise CheckpointError if a folder's `model.safetensors` has another digest."""
    path = folder / "model.safetensors"
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
    if found != sha256:
        raise CheckpointError(f"{path} has sha256 {found}, the recipe expects {sha256}; take the release it names")


def lacks_head(folder: Path) -> bool:
    """Return whether a folder holds a BERT encoder without the head of a masked language model."""
    from safetensors import safe_open

    path = folder / "model.safetensors"
    if is_adapter(folder) or not path.is_file():
        return False
    if read_json_object(folder / "config.json").get("model_type") != "bert":
        return False
    with safe_open(str(path), "pt") as file:
        return not any(".predictions." in name for name in file.keys())  # noqa: SIM118  (not a mapping)


def with_copying_head(folder: Path, attention: str) -> Backbone:
    """Return a backbone with the weights of a BERT encoder and a vocabulary head that copies its input.

    The decoder is tied to the word embeddings and the transform before it is the identity, so a hidden state near a
    word's embedding predicts that word.

    Args:
        folder: holds config.json, model.safetensors and a tokeniser.
        attention: "eager" or another implementation of transformers.
    """
    from safetensors.torch import load_file
    from transformers import BertConfig, BertForMaskedLM

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    foreign = ("architectures", "transformers_version", "gradient_checkpointing", "position_embedding_type")
    config = BertConfig(**{k: v for k, v in raw.items() if k not in foreign})
    config._attn_implementation = attention
    model = BertForMaskedLM(config)
    weights = {f"bert.{k.removeprefix('bert.')}": v.float() for k, v in load_file(folder / "model.safetensors").items()}
    weights = {k: v for k, v in weights.items() if "position_ids" not in k and "pooler" not in k}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(k.startswith("bert.") for k in missing):
        raise CheckpointError(f"{folder}: unexpected tensors {unexpected}, missing {missing}; give a BERT encoder")
    with torch.no_grad():
        dense = model.cls.predictions.transform.dense
        dense.weight.copy_(torch.eye(dense.weight.shape[0]))
        dense.bias.zero_()
    tokenizer = Tokenizer.from_folder(folder)
    ids = [tokenizer.id_of(token) for token in ("[MASK]", "[SEP]", "[PAD]")]
    if None in ids:
        raise CheckpointError(f"{folder}: the tokeniser lacks one of [MASK], [SEP], [PAD]; give a BERT encoder")
    special = SpecialIds(*(int(i or 0) for i in ids))
    return Backbone(model, spec_for("bert"), tokenizer, special, fingerprint="").eval()


def set_dropout(backbone: Backbone, share: float) -> None:
    """Set the dropout of all layers that have one, whatever the base was trained with."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = share  # type: ignore[assignment]


def recompute_layers(backbone: Backbone) -> None:
    """Keep no activations inside layers: they are computed again in the backward pass."""
    model = backbone.model
    # Renamed within the releases of transformers that we take; the old name warns in the newer ones.
    newer = getattr(model, "activation_checkpointing_enable", None)
    enable = cast(Callable[[dict[str, bool]], None], newer or model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
