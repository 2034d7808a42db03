"""Sources: where a backbone's config, tokeniser and tensors are read from: a folder, or one GGUF file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from diffretriever.errors import CheckpointError
from diffretriever.json_files import read_json_object
from diffretriever.tokenizer import Tokenizer


class Source(Protocol):
    """The files of a published model."""

    @property
    def path(self) -> Path:
        """The folder or file, for messages."""
        ...

    def config(self) -> dict[str, Any]:
        """Return the config as config.json has it."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Return the tokeniser."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the published name and value of each tensor, one at a time."""
        ...

    def digest(self) -> str:
        """Return a quick hash of the weights."""
        ...


class FolderSource:
    """A folder with config.json, safetensors and a tokeniser, as published on the model hub."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def config(self) -> dict[str, Any]:
        """Return config.json.

        Raises:
            CheckpointError: the folder or the file is missing, or it is not JSON.
        """
        path = self.path / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{self.path}: no config.json there; give a folder with config.json and *.safetensors"
            )
        return read_json_object(path)

    def tokenizer(self) -> Tokenizer:
        """Return the folder's tokeniser."""
        return Tokenizer.from_folder(self.path)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of every shard."""
        from safetensors import SafetensorError, safe_open

        for shard in shard_paths(self.path):
            try:
                with safe_open(str(shard), framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                        yield name, file.get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(f"{shard}: not a readable safetensors file: {error}") from error

    def digest(self) -> str:
        """Return a quick hash of the shards."""
        return weights_digest(shard_paths(self.path))


def shard_paths(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder: one file, or those its index names.

    Raises:
        CheckpointError: there are none, or the index names one that is missing or lies outside the folder.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index}: holds no 'weight_map' of tensors to files; download it again")
        names = sorted(set(shards.values()))
        for name in names:
            if Path(name).name != name:
                raise CheckpointError(f"{index}: names a file outside its folder: {name!r}")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {name}, which the index names, is missing")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    raise CheckpointError(
        f"{folder}: no model.safetensors and no model.safetensors.index.json; only safetensors are read, "
        "convert other formats first"
    )


def weights_digest(paths: list[Path]) -> str:
    """Return a hash of the files' headers and of 4 KiB at each of 64 places: quick, and new after any training."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            header = file.read(8)
            digest.update(file.read(min(int.from_bytes(header, "little"), 1 << 24)))
            for place in range(64):
                file.seek(size * place // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()
