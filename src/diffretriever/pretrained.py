"""Opening and saving a retriever's checkpoint: settings, backbone, slot embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import torch
from typing_extensions import Unpack

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.float8 import FLOAT8, quantise_float8, require_float8
from diffretriever.backbones.hardware import device_named, warn_of_slow_bf16
from diffretriever.backbones.loading import load_backbone
from diffretriever.checkpoint import RetrieverSettings, checkpoint_folders, locate
from diffretriever.errors import CheckpointError, InputError
from diffretriever.prompts import Chat, Prompt

#: Files of the slot embeddings and of the term bias.
SLOTS_FILE, TERMS_FILE = "slots.safetensors", "terms.safetensors"
#: Systems that read no vocabulary head.
_HEADLESS = ("diffembed", "repllama")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded backbone, the settings to use it with, and [2, K_max, D] slot embeddings if it has any."""

    backbone: Backbone
    settings: RetrieverSettings
    slot_embeddings: torch.Tensor | None


class BackboneOptions(TypedDict, total=False):
    """How to load a backbone, whatever the checkpoint says.

    Attributes:
        base: base model of an adapter, when it is not where the adapter says.
        device: such as "cpu" or "cuda:1"; the first GPU by default.
        dtype: such as "float32" or "bfloat16"; bf16 by default where the hardware is faster in it, else fp32. "float8"
            rounds the layers' weights to it (extra `float8`; see `backbones.float8`).
        attention: "auto", "sdpa", "eager" or "flash_attention_2".
        device_map: "auto" or a map, to spread a large model over several devices.
    """

    base: str | Path | None
    device: str | torch.device | None
    dtype: str | torch.dtype | None
    attention: str
    device_map: str | dict[str, int | str] | None


def open_checkpoint(
    name_or_path: str | Path, given: Mapping[str, object], **options: Unpack[BackboneOptions]
) -> Checkpoint:
    """Return a checkpoint whose recorded settings are overridden by what is given and not None.

    Args:
        name_or_path: what `checkpoint.locate` understands.
        given: fields of `RetrieverSettings`.
        options: how to load the backbone.

    Raises:
        CheckpointError: files are missing, foreign or do not fit.
        InputError: the device is not here, or an option is out of range.
    """
    folder = locate(name_or_path)
    parts = checkpoint_folders(folder, options.get("base"))
    device, dtype = device_named(options.get("device")), options.get("dtype")
    if dtype == FLOAT8:
        # Before the weights are read, which takes minutes for large models.
        require_float8(device)
    elif dtype == "bfloat16":
        warn_of_slow_bf16(device, "dtype float32")
    settings = _settings_for(given.get("system"), RetrieverSettings.load(folder))
    backbone = load_backbone(
        parts.base,
        device=device,
        dtype=torch.bfloat16 if dtype == FLOAT8 else dtype_named(dtype),
        adapter=parts.adapter,
        attention=options.get("attention") or "auto",
        device_map=options.get("device_map"),
        tokenizer_folder=parts.tokenizer,
        head=settings.system not in _HEADLESS,
    )
    if dtype == FLOAT8:
        quantise_float8(backbone)
    if settings.expected_ids is not None and given.get("prompt") is None:
        settings = replace(settings, prompt=_prompt_of_ids(backbone, settings, folder))
    settings = replace(settings, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    slots, bias = load_tensor(folder / SLOTS_FILE, "slot_embeddings"), load_tensor(folder / TERMS_FILE, "term_bias")
    backbone.fingerprint = _fingerprint(backbone.fingerprint, slots, bias, settings.mean_words)
    if bias is not None:
        backbone.term_bias = torch.nn.Parameter(bias.to(backbone.device, backbone.dtype), requires_grad=False)
    return Checkpoint(backbone, settings, slots)


def _fingerprint(
    of_weights: str, slots: torch.Tensor | None, bias: torch.Tensor | None, mean_words: float | None
) -> str:
    """Return a backbone's fingerprint with what was learned beside its weights; without any, as it is.

    The tensors are as the checkpoint holds them, so that the dtype a model is opened in plays no part.
    """
    if slots is None and bias is None and mean_words is None:
        return of_weights
    digest = hashlib.sha256(f"{of_weights} {mean_words}".encode())
    for name, tensor in (("slots", slots), ("terms", bias)):
        if tensor is not None:
            digest.update(f" {name} {list(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def _settings_for(system: object, recorded: RetrieverSettings) -> RetrieverSettings:
    """Return what a checkpoint's settings say to a system; to one that it was not tuned as, the lengths alone."""
    if system is None or system == (recorded.system or "diffretriever"):
        return recorded
    return RetrieverSettings(
        max_query_length=recorded.max_query_length,
        max_passage_length=recorded.max_passage_length,
        protocol=recorded.protocol,
        system=str(system),
    )


def save_checkpoint(
    folder: Path,
    backbone: Backbone,
    settings: RetrieverSettings,
    slot_embeddings: torch.Tensor | None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    term_bias: torch.Tensor | None = None,
) -> None:
    """Write a folder that `open_checkpoint` reads: config, weights, tokeniser, slot embeddings, term bias, settings.

    Weights are written under the native class's names, and the config says which row they belong to.

    Args:
        folder: made when it is missing.
        backbone: the model.
        settings: what the checkpoint records.
        slot_embeddings: [2, K_max, D]; None for none.
        tensors: weights to write instead of the model's own, by the same names.
        term_bias: [V] to write instead of the backbone's own.

    Raises:
        InputError: weights are rounded to float8, which a checkpoint does not hold.
    """
    if backbone.weights_dtype:
        raise InputError(f"weights rounded to {backbone.weights_dtype} cannot be saved; open the model in bfloat16")
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model = backbone.model
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if _tied(model) else set()
    weights = model.state_dict() if tensors is None else tensors
    written = {n: t.detach().cpu().contiguous() for n, t in weights.items() if n not in tied}
    save_file(written, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False))  # type: ignore[union-attr,operator]
    special = {f"{k}_token_id": v for k, v in _special(backbone).items()}
    config = {**config, "model_type": backbone.spec.model_types[0], **special}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_around_weights(folder, backbone, settings, slot_embeddings, term_bias)


def save_around_weights(
    folder: Path,
    backbone: Backbone,
    settings: RetrieverSettings,
    slot_embeddings: torch.Tensor | None,
    term_bias: torch.Tensor | None = None,
) -> None:
    """Write what a checkpoint holds beside its weights, or an adapter: see `save_checkpoint`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    backbone.tokenizer.save(folder)
    settings.save(folder)
    bias = backbone.term_bias if term_bias is None else term_bias
    for file, name, tensor in ((SLOTS_FILE, "slot_embeddings", slot_embeddings), (TERMS_FILE, "term_bias", bias)):
        if tensor is not None:
            save_file({name: tensor.detach().cpu().contiguous()}, str(folder / file))
        else:  # what an earlier model left there is not this one's
            (folder / file).unlink(missing_ok=True)


def _tied(model: torch.nn.Module) -> bool:
    return bool(getattr(model.config, "tie_word_embeddings", False))


def _special(backbone: Backbone) -> dict[str, int]:
    special = backbone.special
    named = {"mask": special.mask, "eos": special.end_of_sequence, "pad": special.pad}
    return {role: i for role, i in named.items() if i >= 0}


def load_tensor(path: Path, name: str) -> torch.Tensor | None:
    """Return the one tensor of a safetensors file, fp32; None if there is no such file.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        tensors = load_file(str(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    if set(tensors) != {name}:
        raise CheckpointError(f"{path}: holds {sorted(tensors)}, not one tensor {name!r}")
    return tensors[name].float()


def _prompt_of_ids(backbone: Backbone, settings: RetrieverSettings, folder: Path) -> str:
    """Return the bundled template that tokenises to the ids which the checkpoint was trained with."""
    chat = Chat.load(backbone.spec.chat)
    for name in ("few", "one", "three"):
        prompt = Prompt.load(name)
        sides = (
            prompt.affixes("query", chat, settings.query_slots or 1),
            prompt.affixes("passage", chat, settings.passage_slots or 1),
        )
        ids = backbone.tokenizer.encode([text for side in sides for text in side], parse_special_tokens=True)
        if tuple(tuple(i) for i in ids) == settings.expected_ids:
            return name
    raise CheckpointError(
        f"{folder}: was trained with a prompt that is none of the bundled ones (few, one, three) for this tokeniser; "
        "give the right template as `prompt`"
    )


def dtype_named(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of a name.

    Raises:
        InputError: models are not loaded in a dtype of that name.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(_DTYPES)}, or float8 to load a model")
    return _DTYPES[dtype]
