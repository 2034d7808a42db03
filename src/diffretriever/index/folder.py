"""IndexFolder: the folder of an index, its lock, manifest and store."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from diffretriever.errors import IndexFormatError
from diffretriever.index.lock import LOCK_FILE, FolderLock
from diffretriever.index.manifest import MANIFEST_FILE, Manifest
from diffretriever.index.store import Store

_STORE = "store"


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
    def create(path: Path, manifest: Manifest, *, overwrite: bool) -> IndexFolder:
        """Make a new index folder.

        Raises:
            IndexFormatError: the folder holds something else, or an index and `overwrite` is false.
            IndexLockedError: the index to be overwritten is open.
        """
        _check_vacant(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(path)
        try:
            # The manifest goes first and comes last: a folder with a manifest is a whole index.
            (path / MANIFEST_FILE).unlink(missing_ok=True)
            if (path / _STORE).exists():
                shutil.rmtree(path / _STORE)
            store = open_store(manifest, path / _STORE)
            manifest.write(path)
        except BaseException:
            lock.release()
            raise
        return IndexFolder(path, lock, manifest, store)

    @staticmethod
    def open(path: Path) -> IndexFolder:
        """Open an index folder.

        Raises:
            IndexFormatError: it is no index, a newer one, or damaged.
            IndexLockedError: it is open elsewhere.
        """
        Manifest.read(path)  # before the lock, which would write a file into a foreign folder
        lock = FolderLock(path)
        try:
            manifest = Manifest.read(path)
            if not (path / _STORE).is_dir():
                raise IndexFormatError(f"{path} has lost its folder {_STORE!r}; restore it from a copy or rebuild")
            return IndexFolder(path, lock, manifest, open_store(manifest, path / _STORE))
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Close the store and let others open the folder."""
        try:
            self.store.close()
        finally:
            self.lock.release()


def open_store(manifest: Manifest, folder: Path | None) -> Store:
    """Return the store of a folder, new if the folder is empty; None keeps an exact store in memory."""
    if manifest.backend == "exact" or folder is None:
        from diffretriever.index.exact import ExactStore

        return ExactStore(folder, manifest)
    if manifest.backend == "cluster":
        raise IndexFormatError(f"{folder} belongs to an index on a server, which no folder holds; open its collection")
    from diffretriever.index.edge import EdgeStore

    return EdgeStore(folder, manifest)


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
    own = {LOCK_FILE, _STORE, f"{MANIFEST_FILE}.new"}
    if strangers := sorted(p.name for p in path.iterdir() if p.name not in own):
        raise IndexFormatError(
            f"{path} is not empty and holds no index (it holds {', '.join(strangers[:3])}); choose another folder"
        )
