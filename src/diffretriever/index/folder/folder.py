"""IndexFolder: the folder of an index, its lock, manifest and store."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffretriever.errors import FolderAccessError, IndexFormatError, IndexLockedError, InputError
from diffretriever.folder_lock import LOCK_FILE, FolderLock, FolderTakenError
from diffretriever.index.calibration import CALIBRATION_NOTE
from diffretriever.index.folder.copying import copy_file
from diffretriever.index.folder.seal import SEAL_FILE, Seal, break_seal, small_files
from diffretriever.index.integrity.checking import checksum_of
from diffretriever.index.integrity.digests import Checksum
from diffretriever.index.manifest import MANIFEST_FILE, UNFINISHED, Manifest, replace_file, sync_folder
from diffretriever.index.storage.codec import PROJECTION_FILE, Codec
from diffretriever.index.store import Store
from diffretriever.index.term_counts import TERM_COUNTS_NOTE

_STORE = "store"
#: What systems say of a folder that this user, or nobody, may write.
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
#: Files that may stand beside the manifest.
EXTRA_FILES = ("build.json", "prompt.json", CALIBRATION_NOTE, TERM_COUNTS_NOTE, PROJECTION_FILE)


@dataclass(frozen=True)
class IndexFolder:
    """An index folder that this process owns.

    Attributes:
        path: the folder.
        lock: keeps other openers out until it is released.
        manifest: what the folder holds.
        store: the open engine.
    """

    path: Path
    lock: FolderLock
    manifest: Manifest
    store: Store

    @staticmethod
    def create(
        path: Path,
        manifest: Manifest,
        *,
        overwrite: bool,
        codec: Codec | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> IndexFolder:
        """Make a new index folder, with notes that belong to it from the beginning, by name.

        Raises:
            IndexFormatError: the folder holds something else, or an index and `overwrite` is false.
            IndexLockedError: the index to be overwritten is open.
            FolderAccessError: this user may not write there.
        """
        _check_vacant(path, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _FORBIDDEN:
                raise
            raise FolderAccessError(f"{path} cannot be made: {error.strerror}; choose another folder") from error
        lock = _lock(path)
        try:
            # The manifest goes first and comes last: a folder with a manifest is a whole index.
            (path / MANIFEST_FILE).unlink(missing_ok=True)
            break_seal(path)
            for name in EXTRA_FILES:
                (path / name).unlink(missing_ok=True)
                (path / (name + UNFINISHED)).unlink(missing_ok=True)
            if (path / _STORE).exists():
                shutil.rmtree(path / _STORE)
            store = open_store(manifest, path / _STORE)
            if codec is not None:
                codec.save(path)
            for name, text in (notes or {}).items():
                replace_file(path / name, text)
            manifest.write(path)
        except BaseException:
            lock.release()
            raise
        return IndexFolder(path, lock, manifest, store)

    @staticmethod
    def open(path: Path, *, salvage: bool = False) -> IndexFolder:
        """Open an index folder.

        Args:
            path: the folder.
            salvage: open what is left of a damaged one, to be checked and repaired.

        Raises:
            IndexFormatError: it is no index, a newer one, or damaged.
            IndexLockedError: it is open elsewhere.
            FolderAccessError: this user may not write there.
        """
        Manifest.read(path)  # before the lock, which would write a file into a foreign folder
        lock = _lock(path)
        try:
            manifest = Manifest.read(path)
            if not (path / _STORE).is_dir() or not any((path / _STORE).iterdir()):
                raise IndexFormatError(f"{path} has lost its folder {_STORE!r}; restore it from a copy or rebuild")
            if not salvage and (seal := Seal.read(path)) and seal.files:
                seal.check_files(path / _STORE)
                # The engine changes them when it opens, and may then be killed.
                Seal(seal.checksum).write(path)
            if salvage:
                _discard_deadly(path)
            store = open_store(manifest, path / _STORE, salvage=salvage)
        except BaseException:
            lock.release()
            raise
        folder = IndexFolder(path, lock, manifest, store)
        try:
            if not salvage:
                folder._check_count()
        except BaseException:
            folder.release()
            raise
        return folder

    def read_note(self, name: str) -> str | None:
        """Return a text kept in the folder; None if there is none of that name.

        Bytes that are no UTF-8 come out as U+FFFD: whoever reads the text knows what to make of a damaged one.
        """
        file = self.path / name
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None

    def write_note(self, name: str, text: str) -> None:
        """Keep a text in the folder."""
        replace_file(self.path / name, text)

    def sealed(self) -> Checksum | None:
        """Return what the folder held when it was last closed, if it was not written to since."""
        seal = Seal.read(self.path)
        return None if seal is None else seal.checksum

    def unseal(self) -> None:
        """Prepare for writing."""
        break_seal(self.path)

    def snapshot(self, path: Path) -> None:
        """Write a copy of the whole index into a new folder; it appears there when it is complete.

        Raises:
            InputError: there is something already.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists already; choose a new folder for the snapshot")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            self.store.snapshot(partial / _STORE)
            for file in self.path.iterdir():
                if file.is_file() and file.name not in (LOCK_FILE, SEAL_FILE) and file.suffix != UNFINISHED:
                    copy_file(file, partial / file.name)
            _seal(partial, self.manifest, checksum_of(self.store))
            partial.chmod(0o777 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)

    def _check_count(self) -> None:
        sealed = self.sealed()
        if sealed is not None and len(self.store) != sealed.passages:
            raise IndexFormatError(
                f"{self.path} is damaged: it was closed with {sealed.passages:,} passages and holds "
                f"{len(self.store):,}; restore it from a copy, or take what is left with `diffretriever check DIR "
                "--repair`"
            )

    def close(self) -> None:
        """Close the store, seal the folder and let others open it; in a forked process, leave that to the owner."""
        if not self.lock.is_own:
            self.release()
            return
        checksum = None
        try:
            try:
                checksum = self.sealed() or checksum_of(self.store)
            except (IndexFormatError, OSError):
                # Without a seal the folder opens as after a crash; whoever reads it meets what is wrong.
                break_seal(self.path)
            self.store.close()
            if checksum is not None:
                with suppress(OSError):
                    _seal(self.path, self.manifest, checksum)
        finally:
            self.lock.release()

    def release(self) -> None:
        """Close the store and let others open the folder, whose seal is left as it is."""
        try:
            # The threads of an engine are not in a forked process, which would wait for them for ever.
            if self.lock.is_own:
                self.store.close()
        finally:
            self.lock.release()


def open_store(manifest: Manifest, folder: Path | None, *, salvage: bool = False) -> Store:
    """Return the store of a folder, new if the folder is empty; None keeps an exact store in memory."""
    if manifest.backend == "exact" or folder is None:
        from diffretriever.index.exact.store import ExactStore

        return ExactStore(folder, manifest, salvage=salvage)
    if manifest.backend == "cluster":
        raise IndexFormatError(f"{folder} belongs to an index on a server, which no folder holds; open its collection")
    from diffretriever.index.edge.store import EdgeStore

    return EdgeStore(folder, manifest)


def _lock(path: Path) -> FolderLock:
    try:
        return FolderLock(path)
    except FolderTakenError as error:
        message = f"{path} is open in {error.owner}; close it there, or work on a copy of the folder"
        raise IndexLockedError(message) from None
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
        raise FolderAccessError(
            f"{path} may not be written ({error.strerror}), and opening an index locks its folder; get the right to "
            "write there, or use a copy of the folder, or another folder for a new index"
        ) from error


def _check_vacant(path: Path, overwrite: bool) -> None:
    """Raise unless the folder is missing, empty, an index that may go, or what an interrupted creation left."""
    if not path.exists():
        return
    if not path.is_dir():
        raise IndexFormatError(f"{path} is a file; give a folder for the index")
    if (path / MANIFEST_FILE).exists():
        if not overwrite:
            raise IndexFormatError(f"{path} already holds an index; open it, or pass overwrite=True to replace it")
        Manifest.read(path)
        return
    if found := strangers(path):
        raise IndexFormatError(
            f"{path} is not empty and holds no index (it holds {', '.join(found[:3])}); choose another folder"
        )


def strangers(folder: Path) -> list[str]:
    """Return the names of what is in a folder without a manifest and was not left there by an interrupted creation."""
    files = {MANIFEST_FILE, SEAL_FILE, *EXTRA_FILES}
    own = {LOCK_FILE, _STORE, *files, *(name + UNFINISHED for name in files)}
    return sorted(path.name for path in folder.iterdir() if path.name not in own)


def _seal(path: Path, manifest: Manifest, checksum: Checksum) -> None:
    Seal(checksum, small_files(path / _STORE) if manifest.backend == "edge" else {}).write(path)


def _discard_deadly(path: Path) -> None:
    """Remove files that would make the engine end the process, and that it can do without, where they are damaged."""
    with suppress(IndexFormatError):
        seal = Seal.read(path)
        found = small_files(path / _STORE)
        for name, expected in (seal.files if seal else {}).items():
            if name.endswith("/deleted/status.dat") and found.get(name, expected) != expected:
                (path / _STORE / name).unlink()


def _umask() -> int:
    # There is no way to read it without setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
