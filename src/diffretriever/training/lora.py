"""LoRA: low-rank adapters in a backbone, through PEFT; their files, and weights with their updates added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.lora import is_adapter
from diffretriever.checkpoint import locate
from diffretriever.errors import CheckpointError, InputError, MissingExtraError
from diffretriever.training.model_settings import LoraSettings

_ADAPTER = "default"
_PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


def add_lora(backbone: Backbone, settings: LoraSettings, base: str) -> None:
    """Put adapters into a backbone and freeze everything else.

    The model stays of its native class; layers are replaced by PEFT's in their places. Adapters are fp32, whatever the
    base is in.

    Args:
        backbone: the base.
        settings: rank, scale, dropout and layers.
        base: what the base was opened as, for the adapter's file.

    Raises:
        InputError: no layer has such a name, or one of them is the vocabulary head.
        MissingExtraError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("peft", "train", "LoRA") from error
    targets = settings.targets or backbone.spec.lora_targets
    _check_targets(backbone, targets)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        base_model_name_or_path=_name_of(base),
        task_type="FEATURE_EXTRACTION",
    )
    backbone.requires_grad_(False)
    inject_adapter_in_model(config, backbone.model, adapter_name=_ADAPTER)
    for name, parameter in backbone.model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def has_lora(model: nn.Module) -> bool:
    """Return whether a model has adapters."""
    return isinstance(getattr(model, "peft_config", None), dict)


def check_lora_base(base: str, *, merged: bool, headless: bool) -> None:
    """Raise InputError where an adapter by itself could not be opened again with its base."""
    folder = locate(base)
    if merged:
        return
    if headless:
        raise InputError(
            f"{base} has no vocabulary head, and an adapter brings none; set model.lora.merge to true, or train all "
            "weights"
        )
    if folder.is_dir() and is_adapter(folder):
        raise InputError(f"{base} is an adapter itself; set model.lora.merge to true, or merge it first")


def save_adapter(
    model: nn.Module, folder: Path, dtype: torch.dtype | None = None, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapters of a model in PEFT's layout, which `DiffRetriever.from_pretrained` and PEFT read.

    Args:
        model: the model.
        folder: where to.
        dtype: dtype of the file; that of the adapters by default.
        state: values to write instead of the model's own, by the same names.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in _adapter(model, state)}
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    config = cast(Mapping[str, Any], model.peft_config)[_ADAPTER]
    config.inference_mode = True
    config.save_pretrained(str(folder))
    config.inference_mode = False


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Give the adapters of a model the weights that `save_adapter` wrote.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    from safetensors.torch import load_file

    tensors = load_file(str(folder / WEIGHTS))
    own = dict(_adapter(model))
    if wrong := sorted(own.keys() ^ tensors.keys()):
        raise CheckpointError(f"{folder}: tensors do not fit these adapters: {', '.join(wrong[:3])}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(f"{folder}: {name} is {list(tensor.shape)}, expected {list(own[name].shape)}")
        with torch.no_grad():
            own[name].copy_(tensor)


def merged_tensors(
    model: nn.Module, dtype: torch.dtype | None = None, state: Mapping[str, Tensor] | None = None
) -> Mapping[str, Tensor]:
    """Return the weights under the native class's names, on the CPU, with the updates of the adapters added.

    Sums are in fp32 and rounded once. The model itself is left as it is.

    Args:
        model: the model.
        dtype: dtype of the result; that of the weights by default.
        state: values to take instead of the model's own, by the same names.
    """
    state = model.state_dict() if state is None else state
    scales: dict[str, float] = {}
    for path, layer in model.named_modules():
        if path and _ADAPTER in getattr(layer, "lora_A", {}):
            scales[path] = float(cast(Mapping[str, float], layer.scaling)[_ADAPTER])
    merged = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        native = name.replace(".base_layer.", ".")
        value = tensor.detach()
        path = native.removesuffix(".weight")
        if native.endswith(".weight") and path in scales:
            down, up = (state[f"{path}.lora_{half}.{_ADAPTER}.weight"].detach().float() for half in "AB")
            value = (value.float() + scales[path] * (up @ down).to(value.device)).to(tensor.dtype)
        merged[native] = value.to("cpu", dtype if value.is_floating_point() else None)
    return merged


def _adapter(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the names that PEFT writes and the tensors of all adapters."""
    for name, parameter in model.named_parameters() if state is None else state.items():
        if ".lora_" in name:
            yield _PREFIX + name.replace(f".{_ADAPTER}.", "."), parameter


def _check_targets(backbone: Backbone, targets: tuple[str, ...]) -> None:
    model = backbone.model
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        matched = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matched:
            leaves = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
            raise InputError(f"model.lora.targets names {target!r}, and no layer ends so; layers are {leaves}")
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        if head is not None and any(model.get_submodule(name) is head for name in matched):
            raise InputError(f"model.lora.targets names {target!r}, the vocabulary head; it is never adapted")


def _name_of(base: str) -> str:
    """Return how an adapter names its base: the whole path of a folder, which may be opened from anywhere."""
    return str(Path(base).resolve()) if Path(base).exists() else base
