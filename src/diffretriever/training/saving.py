"""Saving: a module as a folder that `open_system` reads, and its weights back from one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffretriever.errors import CheckpointError
from diffretriever.json_files import write_json
from diffretriever.pretrained import SLOTS_FILE, TERMS_FILE, load_tensor, save_around_weights, save_checkpoint
from diffretriever.training.lora import has_lora, load_adapter, merged_tensors, save_adapter
from diffretriever.training.module import RetrieverModule

_ABOUT = "training.json"


def save_model(
    module: RetrieverModule,
    folder: Path,
    about: Mapping[str, object] | None = None,
    dtype: torch.dtype | None = None,
    *,
    merge: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write config, weights, tokeniser, slot embeddings and settings, and how the model came about.

    Of a module with LoRA the adapters alone are written, in PEFT's layout, and the base is named.

    Args:
        module: what was trained.
        folder: where to; files of these names are replaced.
        about: facts of the run, written to `training.json`; None for none.
        dtype: dtype of the files; that of the weights by default. fp16 halves the size of fp32 and keeps three digits,
            more than the bf16 products of training had.
        merge: whether the base with the updates of the adapters is written instead of the adapters.
        state: the module's state, gathered, where its parameters are spread over processes; its own by default.
    """
    backbone = module.backbone
    settings = replace(module.encoder.settings, tuned=True)
    slots = module.slot_embeddings if state is None else state.get("slot_embeddings")
    slots = None if slots is None else slots.detach().to(dtype)
    bias = module.backbone.term_bias if state is None else state.get("backbone.term_bias")
    bias = None if bias is None else bias.detach().to(dtype)
    weights = None if state is None else _of_backbone(state)
    if has_lora(backbone.model) and not merge:
        save_adapter(backbone.model, folder, dtype, weights)
        save_around_weights(folder, backbone, settings, slots, bias)
    elif has_lora(backbone.model):
        save_checkpoint(folder, backbone, settings, slots, merged_tensors(backbone.model, dtype, weights), bias)
    else:
        if weights is not None:
            weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
        elif dtype is not None and dtype != backbone.dtype:
            backbone = copy.deepcopy(backbone).to(dtype)
        save_checkpoint(folder, backbone, settings, slots, weights, bias)
    if about is not None:
        write_json(folder / _ABOUT, about)


def _of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "backbone.model."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def load_model(module: RetrieverModule, folder: Path) -> None:
    """Give a module the weights that `save_model` wrote, of adapters if it has any.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    if has_lora(module.backbone.model):
        load_adapter(module.backbone.model, folder)
    else:
        _load_weights(module, folder)
    learned = (
        (SLOTS_FILE, "slot_embeddings", module.slot_embeddings),
        (TERMS_FILE, "term_bias", module.backbone.term_bias),
    )
    for file, name, parameter in learned:
        if parameter is None:
            continue
        if (saved := load_tensor(folder / file, name)) is None:
            raise CheckpointError(f"{folder}: {file} is missing; give the folder of this model")
        with torch.no_grad():
            parameter.copy_(saved)


def _load_weights(module: RetrieverModule, folder: Path) -> None:
    from safetensors.torch import load_file

    model = module.backbone.model
    tensors: dict[str, Tensor] = load_file(str(folder / "model.safetensors"))
    expected = model.state_dict()
    tied = {name for name, tensor in expected.items() if name not in tensors and _shared(tensor, expected, tensors)}
    if wrong := sorted((expected.keys() ^ tensors.keys()) - tied):
        raise CheckpointError(f"{folder}: tensors do not fit this model: {', '.join(wrong[:3])}; give its own folder")
    model.load_state_dict(tensors, strict=False)


def _shared(tensor: Tensor, expected: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is another name of one that was saved."""
    return any(other.data_ptr() == tensor.data_ptr() for name, other in expected.items() if name in saved)
