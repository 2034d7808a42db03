"""IndexHome: where an index is, a folder or a collection of a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from diffretriever.errors import InputError, MissingExtraError
from diffretriever.index.cluster.location import ClusterLocation, is_cluster
from diffretriever.index.folder.folder import IndexFolder
from diffretriever.index.manifest import MANIFEST_FILE, Backend, Manifest
from diffretriever.index.storage.codec import Codec
from diffretriever.index.store import Store


class IndexHome(Protocol):
    """A place that holds an index, open until it is closed."""

    @property
    def path(self) -> Path | str:
        """The folder, or the address of the collection."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What the place holds."""
        ...

    @property
    def store(self) -> Store:
        """The open engine."""
        ...

    def read_note(self, name: str) -> str | None:
        """Return a small text kept with the index; None if there is none of that name."""
        ...

    def write_note(self, name: str, text: str) -> None:
        """Keep a small text with the index, in place of one of the same name."""
        ...

    def close(self) -> None:
        """Close the store and let others use the place."""
        ...


def backend_of(path: str | Path | None, asked: Backend | None) -> Backend:
    """Return the backend of a new index: the one asked for, or what the path needs.

    Raises:
        InputError: it is unknown, or does not go with the path.
    """
    if is_cluster(path):
        if asked not in (None, "cluster"):
            raise InputError(f"{path} is on a server, which has the backend 'cluster', not {asked!r}")
        ClusterLocation.parse(str(path))
        return "cluster"
    backend = asked or "edge"
    if backend == "cluster":
        raise InputError(f"the cluster backend needs the address of a collection, qdrant://host/name, got {path}")
    if backend not in ("edge", "exact"):
        raise InputError(f"backend must be 'edge' or 'exact', got {backend!r}")
    if path is None and backend != "exact":
        raise InputError(f"the {backend} backend needs a folder; give a path, or backend='exact'")
    return backend


def create_home(
    path: str | Path,
    manifest: Manifest,
    *,
    overwrite: bool,
    shards: int | None = None,
    replicas: int | None = None,
    codec: Codec | None = None,
    notes: Mapping[str, str] | None = None,
) -> IndexHome:
    """Make a new, empty index in a folder or on a server, with its first notes; errors as in `Index.create`."""
    if is_cluster(path):
        location = ClusterLocation.parse(str(path))
        _check_extra()
        from diffretriever.index.cluster.collection import ClusterCollection

        return ClusterCollection.create(
            location, manifest, overwrite=overwrite, shards=shards, replicas=replicas, codec=codec, notes=notes
        )
    if shards is not None or replicas is not None:
        raise InputError(f"only an index on a server has shards and replicas, and {path} is a folder")
    return IndexFolder.create(Path(path), manifest, overwrite=overwrite, codec=codec, notes=notes)


def home_exists(path: str | Path) -> bool:
    """Return whether there is an index at a path; a collection counts as one whatever it holds."""
    if is_cluster(path):
        location = ClusterLocation.parse(str(path))
        _check_extra()
        from diffretriever.index.cluster.collection import ClusterCollection

        return ClusterCollection.exists(location)
    return (Path(path) / MANIFEST_FILE).is_file()


def open_home(path: str | Path, *, salvage: bool = False) -> IndexHome:
    """Open an index of a folder or a server; errors as in `Index.open`."""
    if is_cluster(path):
        location = ClusterLocation.parse(str(path))
        _check_extra()
        from diffretriever.index.cluster.collection import ClusterCollection

        return ClusterCollection.open(location)
    return IndexFolder.open(Path(path), salvage=salvage)


def load_codec(home: IndexHome) -> Codec:
    """Return what makes vectors into those that a place stores.

    Raises:
        IndexFormatError: the projection that it needs is missing or damaged.
    """
    if isinstance(home.path, Path):
        return Codec.load(home.path, home.manifest)
    from diffretriever.index.cluster.collection import ClusterCollection

    return cast(ClusterCollection, home).read_codec()


def _check_extra() -> None:
    try:
        import qdrant_client  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("qdrant-client", "cluster", "an index on a server") from error
