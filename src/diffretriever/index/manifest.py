"""Manifest: what an index holds and how it was made; a small JSON file in its folder, or metadata of its collection."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Literal, cast, get_args

from diffretriever.errors import IndexFormatError, IndexMismatchError
from diffretriever.index.storage.storage import Storage
from diffretriever.representations import Provenance, Representations

MANIFEST_FILE = "manifest.json"
#: What the name of a file ends in until `replace_file` has written all of it.
UNFINISHED = ".new"
FORMAT = "diffretriever-index"
FORMAT_VERSION = 2
#: What the system says of a file that may well be whole: no room to open it, or not for this user.
NOT_DAMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)

Backend = Literal["edge", "exact", "cluster"]


@dataclass(frozen=True)
class Manifest:
    """What an index holds.

    Attributes:
        backend: engine that keeps the passages; "cluster" is a server.
        storage: in what form the vectors are stored.
        dim: width D of the dense vectors; 0 when there are none.
        vocabulary_size: number V of term ids; 0 when there are no sparse weights.
        provenance: how the representations are made.
        projection: digest of the projection onto principal components, where there is one.
    """

    backend: Backend
    storage: Storage
    dim: int
    vocabulary_size: int
    provenance: Provenance
    projection: str = ""

    @property
    def width(self) -> int:
        """Dimensions of the vectors that are compared in the end."""
        return self.storage.width(self.dim)

    def check(self, representations: Representations, what: str) -> None:
        """Raise when `representations` cannot be compared with those of the index.

        Args:
            representations: of queries or passages.
            what: what they are called in the message.

        Raises:
            IndexMismatchError: names everything that differs.
        """
        found = (representations.dim, representations.sparse.shape[1], representations.provenance)
        self.check_space(*found, what)

    def check_space(self, dim: int | None, vocabulary_size: int, provenance: Provenance, what: str) -> None:
        """Raise when something was made otherwise than the index; `dim` is None where it is not known."""
        different = self.provenance.differences(provenance)
        if dim is not None and dim != self.dim:
            different.append(f"dimension: {self.dim} against {dim}")
        if vocabulary_size != self.vocabulary_size:
            different.append(f"vocabulary size: {self.vocabulary_size} against {vocabulary_size}")
        if different:
            raise IndexMismatchError(
                f"the index and the {what} were made differently (index against {what}): {'; '.join(different)}. Use "
                f"the model and settings of the index ({self.provenance.model!r}), or build a new index"
            )

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder in one step: a reader finds the old one or the new one."""
        about = self.to_mapping()
        replace_file(folder / MANIFEST_FILE, json.dumps({**about, "checksum": _checksum(about)}, indent=1) + "\n")

    def to_mapping(self) -> dict[str, object]:
        """Return the manifest as JSON values."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read the manifest of an index folder.

        Raises:
            IndexFormatError: the folder holds no index, a newer one, or a damaged manifest.
            OSError: the system does not let it be read now.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            what = "does not exist" if not folder.exists() else f"is no index: it holds no {MANIFEST_FILE}"
            raise IndexFormatError(
                f"{folder} {what}; create one with `diffretriever index INPUT --out DIR` or Index.create"
            )
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
                raise
            raise IndexFormatError(f"{path} cannot be read ({error}); restore it from a copy or rebuild") from error
        manifest = Manifest.from_mapping(about, path)
        if about.pop("checksum", None) != _checksum(about):
            raise IndexFormatError(f"{path} is not as it was written; restore it from a copy or rebuild the index")
        return manifest

    @staticmethod
    def from_mapping(about: object, where: Path | str) -> Manifest:
        """Read what `to_mapping` returned, of this version or an earlier one.

        Raises:
            IndexFormatError: it is no manifest, a newer one, or damaged; the message begins with `where`.
        """
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise IndexFormatError(f"{where} is not the manifest of an index of this package; choose another place")
        version = about.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise IndexFormatError(
                f"{where} has index format {version!r}, this version reads up to {FORMAT_VERSION}; "
                "upgrade diffretriever, or rebuild the index"
            )
        return _parse(about, where)


def _parse(about: dict[str, object], where: Path | str) -> Manifest:
    try:
        given = cast(dict[str, object], about["provenance"])
        # A field of a later release of the same format is not known here, and one of an earlier is not there.
        provenance = Provenance(**{f.name: given[f.name] for f in fields(Provenance) if f.name in given})  # type: ignore[arg-type]
        backend, storage = about["backend"], Storage.from_mapping(_storage(about))
        if backend not in get_args(Backend):
            raise ValueError(f"backend {backend!r} is not known")
        dim, vocabulary_size = about["dim"], about["vocabulary_size"]
        if not isinstance(dim, int) or not isinstance(vocabulary_size, int):
            raise ValueError(f"dim {dim!r} and vocabulary size {vocabulary_size!r} must be whole numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise IndexFormatError(f"{where} is damaged ({error}); restore it from a copy or rebuild the index") from error
    projection = str(about.get("projection", ""))
    return Manifest(cast(Backend, backend), storage, dim, vocabulary_size, provenance, projection)


def _storage(about: Mapping[str, object]) -> object:
    """Return what a manifest says of the storage in the words of the present version."""
    given = about["storage"]
    if not isinstance(given, Mapping) or "codes" in given:
        return given
    # Version 1 named the codes in place of the float16 vectors that they stand beside.
    old = given["dtype"]
    return {**given, "dtype": "float16", "codes": old} if old in ("int8", "binary") else {**given, "codes": None}


def _checksum(about: Mapping[str, object]) -> str:
    return blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file so that after a crash it holds either its old content or all of the new one."""
    os.replace(write_beside(path, content), path)
    sync_folder(path.parent)


def write_beside(path: Path, content: str | bytes) -> Path:
    """Write what a file is to hold into another one beside it, which is on disk when this returns."""
    temporary = path.with_name(path.name + UNFINISHED)
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut, on systems where a folder can be synchronised."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
