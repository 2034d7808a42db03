"""ClusterCollection: the collection of an index on a server, with its manifest and store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from qdrant_client import QdrantClient, models

from diffretriever.errors import IndexFormatError, InputError, ServerError
from diffretriever.index.cluster.location import ClusterLocation
from diffretriever.index.cluster.points import sparse_config, vectors_config
from diffretriever.index.cluster.projection import read_projection, remove_projection, write_projection
from diffretriever.index.cluster.server import FIRST_ATTEMPTS, ClusterServer, status_of
from diffretriever.index.cluster.store import ClusterStore
from diffretriever.index.manifest import Manifest
from diffretriever.index.storage.codec import Codec
from diffretriever.index.store import Store

#: Key of the collection's metadata under which everything of this package stands.
METADATA = "diffretriever"


@dataclass(frozen=True)
class ClusterCollection:
    """A collection that holds an index.

    Attributes:
        path: its address.
        manifest: what it holds.
        store: the open store.
        server: the server.
        name: name of the collection on it.
    """

    path: str
    manifest: Manifest
    store: Store
    server: ClusterServer
    name: str

    @staticmethod
    def create(
        location: ClusterLocation,
        manifest: Manifest,
        *,
        overwrite: bool = False,
        shards: int | None = None,
        replicas: int | None = None,
        codec: Codec | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> ClusterCollection:
        """Make a new collection; see `make`."""
        server = ClusterServer(location.connect(), str(location))
        try:
            return make(
                server, location, manifest,
                overwrite=overwrite, shards=shards, replicas=replicas, codec=codec, notes=notes,
            )  # fmt: skip
        except BaseException:
            server.close()
            raise

    @staticmethod
    def open(location: ClusterLocation) -> ClusterCollection:
        """Open a collection; see `find`."""
        server = ClusterServer(location.connect(), str(location))
        try:
            return find(server, location)
        except BaseException:
            server.close()
            raise

    @staticmethod
    def exists(location: ClusterLocation) -> bool:
        """Return whether the server has a collection of that name, whatever it holds."""
        server = ClusterServer(location.connect(), str(location))
        try:
            return _exists(server, location)
        finally:
            server.close()

    def read_codec(self) -> Codec:
        """Return what makes vectors into those that are stored.

        Raises:
            IndexFormatError: the projection of the vectors is missing or damaged.
        """
        manifest = self.manifest
        if manifest.storage.pca is None:
            return Codec(manifest.storage)
        projection = read_projection(self.server, self.name, (manifest.dim, manifest.storage.pca))
        codec = Codec(manifest.storage, projection)
        if codec.digest != manifest.projection:
            raise IndexFormatError(f"the projection of {self.path} is not as it was written; rebuild the index")
        return codec

    def read_note(self, name: str) -> str | None:
        """Return a text kept with the collection; None if there is none of that name."""
        info = self.server.ask("read its metadata", lambda client: client.get_collection(self.name))
        text = (info.config.metadata or {}).get(_note(name))
        return text if isinstance(text, str) else None

    def write_note(self, name: str, text: str) -> None:
        """Keep a text with the collection."""
        metadata = {_note(name): text}
        self.server.ask("write its metadata", lambda c: c.update_collection(self.name, metadata=metadata))

    def close(self) -> None:
        """Close the connections."""
        self.store.close()


def make(
    server: ClusterServer,
    location: ClusterLocation,
    manifest: Manifest,
    *,
    overwrite: bool = False,
    shards: int | None = None,
    replicas: int | None = None,
    codec: Codec | None = None,
    notes: Mapping[str, str] | None = None,
) -> ClusterCollection:
    """Make a new collection on a server.

    Args:
        server: the server.
        location: the address of the collection.
        manifest: what it shall hold.
        overwrite: replace an index that is already there.
        shards: parts that the passages are spread over; the server's default if None.
        replicas: copies of each part. A write is acknowledged once most of them have it.
        codec: what holds the projection of the vectors, if there is one.
        notes: texts that are kept with it from the beginning, by name.

    Raises:
        IndexFormatError: there is a collection already, and it holds something else or `overwrite` is false; or the
            server is too old to keep a manifest.
        InputError: a number is below 1.
        ServerError: the server cannot be reached, or refuses.
    """
    _check_counts(shards=shards, replicas=replicas)
    name = location.collection
    if _exists(server, location):
        if not overwrite:
            raise IndexFormatError(f"{location} exists already; open it, or pass overwrite=True to replace it")
        _read_manifest(server, location)
        server.ask("remove the old collection", lambda client: client.delete_collection(name))
        remove_projection(server, name)
    _create(server, location, manifest, shards, replicas, codec, notes or {})
    if not _about(server, location):
        version = server.ask("ask for its version", lambda client: client.info()).version
        server.ask("remove the new collection", lambda client: client.delete_collection(name))
        raise IndexFormatError(
            f"{location}: the server is version {version}, which keeps no manifest; use 1.16 or later"
        )
    return ClusterCollection(str(location), manifest, ClusterStore(server, name, manifest), server, name)


def find(server: ClusterServer, location: ClusterLocation) -> ClusterCollection:
    """Open a collection of a server.

    Raises:
        IndexFormatError: there is no such collection, it holds something else, or an index of a newer version.
        ServerError: the server cannot be reached, or refuses.
    """
    manifest = _read_manifest(server, location)
    name = location.collection
    return ClusterCollection(str(location), manifest, ClusterStore(server, name, manifest), server, name)


def _read_manifest(server: ClusterServer, location: ClusterLocation) -> Manifest:
    info = _info(server, location)
    about = (info.config.metadata or {}).get(METADATA)
    if not isinstance(about, Mapping):
        raise IndexFormatError(f"{location} is a collection that this package did not make; choose another name")
    manifest = Manifest.from_mapping({**about}, f"{location}")
    if manifest.backend != "cluster":
        raise IndexFormatError(f"{location} is damaged (its manifest says backend {manifest.backend!r}); rebuild it")
    params = info.config.params
    dense = params.vectors if isinstance(params.vectors, Mapping) else {}
    widths = {name: vector.size for name, vector in dense.items()}
    sparse = set(params.sparse_vectors or ())
    if widths != {name: vector.size for name, vector in vectors_config(manifest).items()} or sparse != set(
        sparse_config(manifest)
    ):
        raise IndexFormatError(
            f"{location} has vectors that its manifest does not describe (widths {widths}, sparse {sorted(sparse)}); "
            "push the index again, or rebuild it"
        )
    return manifest


def _create(
    server: ClusterServer,
    location: ClusterLocation,
    manifest: Manifest,
    shards: int | None,
    replicas: int | None,
    codec: Codec | None,
    notes: Mapping[str, str],
) -> None:
    name = location.collection
    if codec is not None and codec.projection is not None:
        # Before the collection, so that where this is, its projection is whole.
        write_projection(server, name, codec.projection, replicas)
    about = {**manifest.to_mapping(), "creation": uuid4().hex}

    request = partial(
        QdrantClient.create_collection,
        collection_name=name,
        vectors_config=vectors_config(manifest),
        sparse_vectors_config=sparse_config(manifest),
        shard_number=shards,
        replication_factor=replicas,
        write_consistency_factor=None if replicas is None else replicas // 2 + 1,
        on_disk_payload=True,
        metadata={METADATA: about, **{_note(name): text for name, text in notes.items()}},
    )
    try:
        server.ask("create the collection", request)
    except ServerError as error:
        # An answer that was lost makes the second attempt fail; then the collection is the one just asked for.
        if status_of(error) not in (400, 409) or _about(server, location).get("creation") != about["creation"]:
            raise


def _exists(server: ClusterServer, location: ClusterLocation) -> bool:
    name = location.collection
    return server.ask("open it", lambda client: client.collection_exists(name), attempts=FIRST_ATTEMPTS)


def _note(name: str) -> str:
    # A key of its own for each note: the server replaces what stands under a key, and leaves other keys alone.
    return f"{METADATA}/{name}"


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")


def _about(server: ClusterServer, location: ClusterLocation) -> Mapping[str, Any]:
    about = (_info(server, location).config.metadata or {}).get(METADATA)
    return about if isinstance(about, Mapping) else {}


def _info(server: ClusterServer, location: ClusterLocation) -> models.CollectionInfo:
    try:
        return server.ask("open it", lambda client: client.get_collection(location.collection), attempts=FIRST_ATTEMPTS)
    except ServerError as error:
        if status_of(error) != 404:
            raise
        raise IndexFormatError(
            f"{location}: the server holds no collection of that name; create one with Index.create or "
            "`diffretriever push`"
        ) from error
