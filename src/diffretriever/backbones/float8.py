"""Float8: the layers' weights in fp8 (e4m3), one scale per row, by torchao; vectors and vocabulary head stay in bf16.

A GPU that multiplies in fp8 rounds the layers' inputs to it as well, and its products take about half the time. A CPU
keeps the weights in fp8 and multiplies in bf16, which is slower and is there to see what the rounding does to rankings
(`benchmarks/agreement.py`).
"""

from __future__ import annotations

import torch
from torch import nn

from diffretriever.backbones.backbone import Backbone
from diffretriever.errors import InputError, MissingExtraError

FLOAT8 = "float8"
#: First compute capability whose tensor cores multiply in fp8 (Ada, Hopper).
_CAPABILITY = (8, 9)
#: What the sizes of an fp8 product must be multiples of.
_MULTIPLE = 16


def quantise_float8(backbone: Backbone) -> int:
    """Round the linear layers of a bf16 backbone to fp8, in place; returns how many.

    Layers whose sizes are no multiples of 16 stay as they are.

    Args:
        backbone: loaded in bf16.

    Raises:
        InputError: the device cannot, or the backbone is in another dtype or has no such layer.
        MissingExtraError: torchao is not installed.
    """
    if backbone.dtype != torch.bfloat16:
        raise InputError(f"float8 starts from bfloat16 weights, these are {backbone.dtype}; load them in bfloat16")
    require_float8(backbone.device)
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    cuda = backbone.device.type == "cuda"
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()) if cuda else Float8WeightOnlyConfig()
    rounded: list[str] = []

    def fits(module: nn.Module, name: str) -> bool:
        fit = isinstance(module, nn.Linear) and not any(n % _MULTIPLE for n in module.weight.shape)
        if fit:
            rounded.append(name)
        return fit

    layers = _layers(backbone)
    quantize_(layers, config, filter_fn=fits)
    if not rounded:
        raise InputError(f"no linear layer of this model has sizes that are multiples of {_MULTIPLE}; use bfloat16")
    backbone.weights_dtype = FLOAT8
    return len(rounded)


def require_float8(device: torch.device) -> None:
    """Raise unless fp8 weights can be used on a device.

    Raises:
        InputError: it is neither a CPU nor a CUDA GPU of compute capability 8.9 or later.
        MissingExtraError: torchao is not installed.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _CAPABILITY:
            raise InputError(
                f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]} and does "
                "not multiply in float8, which takes 8.9 or later (Ada, Hopper); use bfloat16"
            )
    elif device.type != "cpu":
        raise InputError(f"float8 needs a CUDA GPU of compute capability 8.9 or later, got {device}; use bfloat16")
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("torchao", "float8", "float8 weights") from error


def _layers(backbone: Backbone) -> nn.Module:
    """Return the stack of transformer layers."""
    body: nn.Module = backbone.model.base_model  # type: ignore[assignment]
    for path in ("layers", "encoder"):
        if isinstance(found := getattr(body, path, None), nn.Module):
            return found
    raise InputError(f"the layers of a {backbone.spec.name} model are not where float8 looks for them; use bfloat16")
