"""Weights: the tensors of a source, renamed by a family's key map, into a native module, strictly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from diffretriever.backbones.sources import Source
from diffretriever.backbones.specs import BackboneSpec
from diffretriever.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def native_name(spec: BackboneSpec, name: str) -> str:
    """Return the native name of a published tensor or module path."""
    for pattern, replacement in spec.keys:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name, count=1)
    return name


def load_weights(
    model: nn.Module,
    spec: BackboneSpec,
    config: PretrainedConfig,
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    *,
    head: bool = True,
) -> bool:
    """Fill a module whose parameters are on the meta device, tensor by tensor, from its source.

    Args:
        model: the module.
        spec: its registry row.
        config: its config.
        source: where the tensors are.
        dtype: dtype to fill it with.
        device: device to fill it on.
        head: whether the vocabulary head must be there.

    Returns:
        Whether everything was there; False when the vocabulary head was not, whose parameters stay on the meta device.

    Raises:
        CheckpointError: a tensor is missing, unexpected, given twice or of another shape; the message names it.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    seen: set[tuple[str, tuple[int, str] | None]] = set()
    parts: Counter[str] = Counter()
    for published, native, part, tensor in _renamed(source, spec, config):
        if any(re.fullmatch(p, published) for p in spec.ignored):
            continue
        if native not in expected:
            raise CheckpointError(
                f"{source.path}: unexpected tensor {published!r} (as {native!r}); a {spec.name} model has none such"
            )
        if (native, part) in seen:
            raise CheckpointError(
                f"{source.path}: {published!r} (as {native!r}) is given twice; remove one of its files"
            )
        _assign(model, native, part, tensor, dtype, device, where=f"{source.path}: {published}")
        seen.add((native, part))
        parts[native] += 0 if part is None else 1 if part[1] != "all" else 2
    cast(Callable[[], None], model.tie_weights)()
    incomplete = {n for n, count in parts.items() if count and count != 2 * expected[n][0]}
    found = {name for name, _ in seen}
    missing = sorted((set(expected) - found - _tied_names(model)) | incomplete)
    if missing and not head and all(map(_is_head, missing)):
        return False
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{source.path}: the tensor {missing[0]!r} is missing{more}; {_hint(missing)}")
    return True


def _is_head(name: str) -> bool:
    return ".predictions." in name or name.startswith(("lm_head", "head.", "decoder."))


def _hint(missing: list[str]) -> str:
    if all(map(_is_head, missing)):
        return (
            "the folder has no vocabulary head, so its masked positions predict nothing: use a masked-LM checkpoint, "
            "or the system diffembed, which needs no head"
        )
    return "the download may be incomplete"


def _tied_names(model: nn.Module) -> set[str]:
    if not getattr(model.config, "tie_word_embeddings", False):
        return set()
    return set(getattr(model, "_tied_weights_keys", None) or ())


def _renamed(
    source: Source, spec: BackboneSpec, config: PretrainedConfig
) -> Iterator[tuple[str, str, tuple[int, str] | None, torch.Tensor]]:
    """Yield (published name, native name, place in a stacked tensor or None, tensor), holding one tensor at a time."""
    for name, tensor in source.tensors():
        for pattern, replacements in spec.splits:
            if re.fullmatch(pattern, name):
                parts = _split_qkv(tensor, config, where=f"{source.path}: {name}")
                for part, new in zip(parts, replacements, strict=True):
                    yield name, re.sub(pattern, new, name), None, part
                break
        else:
            yield name, *_stacked(spec, name), tensor


def _stacked(spec: BackboneSpec, name: str) -> tuple[str, tuple[int, str] | None]:
    for pattern, replacement in spec.stacks:
        if match := re.fullmatch(pattern, name):
            target, half = match.expand(replacement).split(":")
            return target, (int(match.group(2)), half)
    return native_name(spec, name), None


def _split_qkv(tensor: torch.Tensor, config: PretrainedConfig, where: str) -> tuple[torch.Tensor, ...]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    rows = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    _same_shape(torch.Size([sum(rows), *tensor.shape[1:]]), tensor.shape, where)
    return torch.split(tensor, rows)


def _assign(
    model: nn.Module,
    name: str,
    part: tuple[int, str] | None,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    where: str,
) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    current = getattr(module, leaf)
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{where} holds {kind} numbers: quantised weights are not read; give the model's own")
    keep_fp32 = not isinstance(current, nn.Parameter) and current.dtype == torch.float32
    tensor = tensor.to(device=device, dtype=torch.float32 if keep_fp32 else dtype)
    if part is not None:
        if current.is_meta:
            current = nn.Parameter(torch.zeros(current.shape, dtype=dtype, device=device), requires_grad=False)
            setattr(module, leaf, current)
        expert, half = part
        if expert >= len(current):
            raise CheckpointError(f"{where} is of expert {expert}, the config asks for {len(current)}, numbered from 0")
        rows = current.data[expert]
        target = rows if half == "all" else rows.chunk(2)[int(half)]
        _same_shape(target.shape, tensor.shape, where)
        target.copy_(tensor)
        return
    _same_shape(current.shape, tensor.shape, where)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False) if isinstance(current, nn.Parameter) else tensor)


def _same_shape(wanted: torch.Size, got: torch.Size, where: str) -> None:
    if wanted != got:
        raise CheckpointError(f"{where} has shape {list(got)}, the config asks for {list(wanted)}")
