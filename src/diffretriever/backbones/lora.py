"""LoRA adapters in PEFT's layout, merged into a loaded backbone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffretriever.backbones.specs import BackboneSpec
from diffretriever.backbones.weights import native_name
from diffretriever.errors import CheckpointError
from diffretriever.json_files import read_json_object

_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<path>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")


def is_adapter(folder: Path) -> bool:
    """Return whether the folder holds a PEFT adapter."""
    return (folder / "adapter_config.json").is_file()


def adapter_settings(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json.

    Raises:
        CheckpointError: it describes something other than plain LoRA.
    """
    settings = read_json_object(folder / "adapter_config.json")
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder}: adapter of type {settings.get('peft_type')!r}; only LORA is read")
    for feature in ("use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication"):
        if settings.get(feature):
            raise CheckpointError(f"{folder}: the adapter uses {feature}, which is not supported; merge it with PEFT")
    return settings


def merge_adapter(model: nn.Module, spec: BackboneSpec, folder: Path) -> int:
    """Add the adapter's low-rank updates to the weights; returns how many layers changed.

    Adapters name layers as their base was published or as the native class does; both are understood. A
    published LLaDA adapter may hold the vocabulary head (its "ff_out" pattern matches two layers): it was trained
    with it, so it is merged.

    Raises:
        CheckpointError: a tensor has no partner, names no layer, or does not fit it.
    """
    settings = adapter_settings(folder)
    pairs = _pairs(folder)
    for path, (down, up) in pairs.items():
        native = native_name(spec, f"{path}.weight").removesuffix(".weight")
        try:
            layer = model.get_submodule(native)
        except AttributeError as error:
            raise CheckpointError(
                f"{folder}: the adapter names {path!r} ({native!r}), which the model lacks"
            ) from error
        weight = layer.weight
        if not isinstance(weight, torch.Tensor) or weight.shape != (up.shape[0], down.shape[1]):
            raise CheckpointError(
                f"{folder}: the update of {path!r} is {up.shape[0]} x {down.shape[1]}, its layer's weight has shape "
                f"{list(getattr(weight, 'shape', []))}; was the adapter trained on another model?"
            )
        scale = _scale(settings, path, rank=down.shape[0])
        with torch.no_grad():
            # In fp32 and rounded once, so that a bf16 model merges as exactly as it can.
            update = (up.float() @ down.float()) * scale
            weight.copy_((weight.float() + update.to(weight.device)).to(weight.dtype))
    return len(pairs)


def _scale(settings: dict[str, Any], path: str, rank: int) -> float:
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = value
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def _pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{folder}: adapter_model.safetensors is missing; only safetensors are read")
    halves: dict[str, dict[str, torch.Tensor]] = {}
    try:
        tensors = load_file(str(file))
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            raise CheckpointError(f"{file}: unexpected tensor {name!r}; a LoRA adapter holds lora_A and lora_B")
        halves.setdefault(match["path"], {})[match["part"]] = tensor
    for path, half in halves.items():
        if set(half) != {"A", "B"}:
            raise CheckpointError(f"{file}: {path!r} has lora_{next(iter(half))} alone")
    return {path: (half["A"], half["B"]) for path, half in halves.items()}
