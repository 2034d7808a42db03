"""Loading: a published model (config, tensors, tokeniser) to a Backbone, without remote code."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from diffretriever.backbones.attention import probe_attention, set_direction
from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.gguf import GgufSource
from diffretriever.backbones.hardware import default_device, default_dtype
from diffretriever.backbones.lora import merge_adapter
from diffretriever.backbones.packing import enable_packing
from diffretriever.backbones.sources import FolderSource, Source
from diffretriever.backbones.specs import BackboneSpec, spec_for
from diffretriever.backbones.weights import load_weights
from diffretriever.errors import CheckpointError, InputError, MissingExtraError, blaming
from diffretriever.sequences import SpecialIds
from diffretriever.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Kept by no native config; "auto_map" would name remote code.
_DROPPED = ("auto_map", "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path")

#: Sizes by their native names, checked here because the native classes fail on them in ways that do not name them.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
#: Keys whose null means what their absence means, which the native classes take for a value.
_NO_NULL = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "sliding_window")


def load_backbone(
    folder: Path | Source,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    adapter: Path | None = None,
    attention: str = "auto",
    device_map: str | dict[str, int | str] | None = None,
    tokenizer_folder: Path | None = None,
    head: bool = True,
) -> Backbone:
    """Return the backbone of a folder, in eval mode, its attention probed.

    Args:
        folder: holds config.json, safetensors and a tokeniser, as published; or a GGUF file, which holds all three;
            or where else these three are to be read from.
        device: where the weights go; the first GPU if there is one, else the CPU.
        dtype: dtype of the weights; bf16 where the hardware is faster in it (`hardware.default_dtype`), else fp32.
        adapter: folder of a LoRA adapter to merge.
        attention: "auto" for sequences without padding where the model takes them; "sdpa", "eager" or
            "flash_attention_2" for padded ones.
        device_map: "auto" or a map as accelerate takes it, to spread the layers over several devices.
        tokenizer_folder: folder of the tokeniser, when it is not `folder`.
        head: whether the vocabulary head is needed; a folder without one is then an error.

    Raises:
        CheckpointError: a file or tensor is missing, unexpected or does not fit.
        AttentionError: attention turned out to flow in another direction than the row says.
    """
    source = _source(folder) if isinstance(folder, Path) else folder
    folder, config_json = source.path, source.config()
    spec = spec_for(str(config_json.get("model_type")))
    device = device or default_device()
    dtype = dtype or default_dtype(device)
    apart = tokenizer_folder is not None and tokenizer_folder != folder
    tokenizer = Tokenizer.from_folder(tokenizer_folder) if apart and tokenizer_folder else source.tokenizer()
    config = native_config(spec, config_json, where=folder)
    special = special_ids(spec, config_json, tokenizer, folder, config.vocab_size)
    config._attn_implementation = _attention_implementation(attention, spec, device, dtype)
    with blaming(f"{_file_of(folder)}: no model can be built of its values"):
        model = _empty_model(spec, config)
    target = torch.device("cpu") if device_map else device
    whole = load_weights(model, spec, config, source, dtype, target, head=head)
    digest = hashlib.sha256(source.digest().encode())
    if adapter is not None:
        merge_adapter(model, spec, adapter)
        digest.update((adapter / "adapter_model.safetensors").read_bytes())
    digest.update(tokenizer.digest.encode())
    if not whole:
        model = cast(nn.Module, model.base_model)
    model = _dispatch(model, device_map) if device_map else model.to(device)
    set_direction(model, spec)
    if attention == "auto":
        enable_packing(spec, model)
    backbone = Backbone(model.eval(), spec, tokenizer, special, digest.hexdigest()[:16]).eval()
    probe_attention(backbone, folder)
    if device.type == "cuda" and backbone.packs:
        backbone.use_graphs()
    return backbone


def _source(path: Path) -> Source:
    return GgufSource(path) if path.suffix == ".gguf" else FolderSource(path)


def native_config(spec: BackboneSpec, published: dict[str, Any], where: Path) -> PretrainedConfig:
    """Return the native class's config for a published one; `auto_map` is never followed.

    Raises:
        CheckpointError: a value is of another kind, or asks for something the native class does not compute.
    """
    import transformers

    for key, wanted in spec.requires.items():
        if key in published and published[key] != wanted:
            raise CheckpointError(f"{_file_of(where)}: {key} is {published[key]!r}; only {wanted!r} is supported")
    values = {k: v for k, v in published.items() if k not in _DROPPED and k not in spec.requires}
    for old, new in spec.config_keys.items():
        if old in values:
            values[new] = values.pop(old)
    for key in _SIZES:
        if values.get(key) is not None and not (isinstance(values[key], int) and values[key] > 0):
            raise CheckpointError(
                f"{_file_of(where)}: {key} is {values[key]!r}, not a whole number above 0; restore the file"
            )
    values = {**spec.config_values, **values, "use_cache": False}
    values = {k: v for k, v in values.items() if v is not None or k not in _NO_NULL}
    config_class = getattr(transformers, spec.architecture).config_class
    with blaming(f"{_file_of(where)}: no {config_class.__name__} can be made of its values"):
        # A copy, because what rotary positions need is written into the given values.
        config: PretrainedConfig = config_class(**copy.deepcopy(values))
    return config


def _file_of(where: Path) -> Path:
    """Return the file that a source's config is in, for messages."""
    return where if where.suffix == ".gguf" else where / "config.json"


def _attention_implementation(wanted: str, spec: BackboneSpec, device: torch.device, dtype: torch.dtype) -> str:
    blocks = spec.attention == "block"
    if wanted != "auto":
        if wanted not in ("sdpa", "eager", "flash_attention_2"):
            raise InputError(f"attention is {wanted!r}; choose auto, sdpa, eager or flash_attention_2")
        if blocks and wanted == "flash_attention_2":
            raise InputError(f"{spec.name} attends in blocks, which flash attention cannot; choose auto, sdpa or eager")
        return wanted
    if blocks:
        return "sdpa"
    from transformers.utils.import_utils import is_flash_attn_2_available

    flash = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
    return "flash_attention_2" if flash else "sdpa"


def _empty_model(spec: BackboneSpec, config: PretrainedConfig) -> nn.Module:
    import transformers

    with _parameters_on_meta():
        model: nn.Module = getattr(transformers, spec.architecture)(config)
    return model.requires_grad_(False)


#: One thread at a time: the method of torch that is replaced is everybody's.
_BUILDING = threading.Lock()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters take no memory, while buffers (such as rotary frequencies) are computed."""
    owner = threading.get_ident()

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # Modules that other threads build meanwhile are theirs.
        if param is not None and threading.get_ident() == owner:
            param = nn.Parameter(param.data.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    with _BUILDING:
        register = nn.Module.register_parameter
        nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


def _dispatch(model: nn.Module, device_map: str | dict[str, int | str]) -> nn.Module:
    try:
        from accelerate import dispatch_model, infer_auto_device_map
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "spreading a model over several devices") from error
    if isinstance(device_map, str):
        device_map = infer_auto_device_map(model, no_split_module_classes=getattr(model, "_no_split_modules", None))
    dispatched: nn.Module = dispatch_model(model, device_map)
    return dispatched


def special_ids(
    spec: BackboneSpec, config: dict[str, Any], tokenizer: Tokenizer, folder: Path, vocabulary_size: int
) -> SpecialIds:
    """Return the ids of mask, end and padding that config and tokeniser name.

    Raises:
        CheckpointError: neither names a token that is needed, or one is beyond the rows of the vocabulary.
    """

    def first_id(role: str, *fallbacks: str | None) -> int | None:
        value = config.get(f"{role}_token_id")
        # -1, which the first Llama models give for the padding token, stands for none.
        found = value if isinstance(value, int) and value != -1 else None
        for text in (tokenizer.named.get(f"{role}_token"), *fallbacks):
            if found is None and text is not None:
                found = tokenizer.id_of(text)
        if found is not None and not 0 <= found < vocabulary_size:
            raise CheckpointError(
                f"{folder}: the id of the {role} token is {found}, but the vocabulary has {vocabulary_size} rows; "
                f"correct {role}_token_id in {_file_of(folder).name}, or give the tokeniser of this model"
            )
        return found

    separator = tokenizer.named.get("sep_token")
    end = first_id("eos", separator, "[SEP]")
    mask = first_id("mask", spec.mask_token)
    if mask is None and spec.attention != "causal":
        raise CheckpointError(
            f"{folder}: neither config.json (mask_token_id) nor the tokeniser names the mask token, and "
            f"{spec.mask_token!r} is not in the vocabulary"
        )
    if end is None:
        raise CheckpointError(f"{folder}: neither config.json (eos_token_id) nor the tokeniser names the end token")
    pad = first_id("pad")
    return SpecialIds(mask=-1 if mask is None else mask, end_of_sequence=end, pad=end if pad is None else pad)
