"""Index: passages in, hits out; the class users meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal

from diffretriever.corpus import MetadataValue, Passage
from diffretriever.encoder import Encoder
from diffretriever.errors import InputError, PassageNotFoundError
from diffretriever.fusion import DEPTH, FusionName
from diffretriever.index.checks import check_aligned, check_finite, check_id, checked_metadata, checked_passages
from diffretriever.index.filters import Filter, parse_filter
from diffretriever.index.folder import open_store
from diffretriever.index.hit import Hit
from diffretriever.index.home import IndexHome, backend_of, create_home, open_home
from diffretriever.index.manifest import Backend, Manifest, Storage
from diffretriever.index.searching import Mode, SearchOptions, search_store
from diffretriever.index.stats import IndexStats, disk_bytes
from diffretriever.index.store import Store, StoredPassage
from diffretriever.progress import progress_bar
from diffretriever.representations import Representations

#: Passages encoded and written at once: what an interruption may lose.
BATCH_SIZE = 128
#: Predicted words kept per passage slot.
WORDS = 3


class Index:
    """A searchable collection of passages in a folder, or on a server.

    An index belongs to one encoder: representations made otherwise are refused. One process at a time can hold a
    folder open; copy it to search it from several. A server serves many.

    Example:
        >>> from diffretriever import DiffRetriever, Index, Passage
        >>> with Index.create("my-index", DiffRetriever.from_pretrained("mini")) as index:
        ...     index.add([Passage("p1", "The tilt of the earth's axis causes the seasons.")])
        ...     index.search("what causes the seasons?")[0].passage_id
        'p1'
    """

    def __init__(self, manifest: Manifest, store: Store, home: IndexHome | None, encoder: Encoder | None) -> None:
        """Wrap an open store; use `create` or `open`."""
        self.manifest = manifest
        self.encoder = encoder
        self._home = home
        self._open_store: Store | None = store

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        encoder: Encoder | Representations,
        *,
        backend: Backend | None = None,
        storage: Storage = "float16",
        overwrite: bool = False,
        shards: int | None = None,
        replicas: int | None = None,
    ) -> Index:
        """Return a new, empty index.

        Args:
            path: its folder, made if need be; or the address of a collection on a server, such as
                "qdrant://host:6333/name" ("qdrants://..." with TLS; the key is taken from QDRANT_API_KEY); None keeps
                the index in memory, which the exact backend can do.
            encoder: what encodes passages and queries; or any representations it made, for an index that is only
                given representations.
            backend: "edge" (embedded engine, the default) or "exact" (exhaustive search, the reference); an address
                has the backend "cluster".
            storage: precision of the stored vectors, "float16" or "float32".
            overwrite: replace an index that is already there.
            shards: parts that a server spreads the passages over; its own default if None.
            replicas: copies of each part on a server; a write returns once most of them have it.

        Raises:
            InputError: an option is unknown, or does not go with `path`.
            IndexFormatError: the place holds something else, or an index and `overwrite` is false.
            IndexLockedError: the index to be overwritten is open.
            ServerError: the server cannot be reached, or refuses.
        """
        backend = backend_of(path, backend)
        if storage not in ("float16", "float32"):
            raise InputError(f"storage must be 'float16' or 'float32', got {storage!r}")
        given = encoder if isinstance(encoder, Representations) else None
        # The protocol of encoders does not tell the width of the vectors, so one text is encoded to see it.
        sample = encoder.encode_passages(["width"]) if given is None else given  # type: ignore[union-attr]
        manifest = Manifest(backend, storage, sample.dim, int(sample.sparse.shape[1]), sample.provenance)
        encodes = None if isinstance(encoder, Representations) else encoder
        if path is None:
            return cls(manifest, open_store(manifest, None), None, encodes)
        home = create_home(path, manifest, overwrite=overwrite, shards=shards, replicas=replicas)
        return cls(manifest, home.store, home, encodes)

    @classmethod
    def open(cls, path: str | Path, encoder: Encoder | None = None) -> Index:
        """Return the index of a folder or of a server.

        Args:
            path: the folder, or the address of a collection, as for `create`.
            encoder: what encodes queries and further passages; without one, everything works but searching and
                adding texts.

        Raises:
            IndexFormatError: the place holds no index, a damaged one, or one of a newer version.
            IndexMismatchError: the encoder is not the one of the index; says what differs.
            IndexLockedError: the folder is open elsewhere.
            ServerError: the server cannot be reached, or refuses.
        """
        home = open_home(path)
        if encoder is not None:
            try:
                home.manifest.check_space(None, encoder.vocabulary_size, encoder.provenance, "encoder")
            except BaseException:
                home.close()
                raise
        return cls(home.manifest, home.store, home, encoder)

    def add(
        self,
        passages: Iterable[Passage],
        *,
        batch_size: int = BATCH_SIZE,
        words: int = WORDS,
        progress: bool = False,
    ) -> int:
        """Encode and store passages, and return how many; an id that exists is replaced.

        Batches are written as they are encoded. After an interruption the index holds every finished batch; adding
        the same passages again completes it.

        Args:
            passages: passages with distinct ids; an iterator is read as it is needed.
            batch_size: passages encoded and written at once.
            words: predicted words kept per slot.
            progress: whether to show a progress bar on a terminal.

        Raises:
            InputError: a passage cannot be stored, or the index was opened without an encoder. Nothing is stored if
                the passages are a sequence; of an iterator, the batches before stay.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        encoder = self._encoder("adding texts")
        total = len(passages) if isinstance(passages, Sized) else None
        checked = checked_passages(passages)
        if isinstance(passages, Sequence):
            checked = iter(list(checked))
        store, count = self._store, 0
        try:
            with progress_bar("indexing", total, enabled=progress) as advance:
                while batch := list(islice(checked, batch_size)):
                    self._write(store, batch, encoder.encode_passages(batch, words=words))
                    count += len(batch)
                    advance(len(batch))
            store.maintain()
        finally:
            store.flush()
        return count

    def add_representations(self, passages: Sequence[Passage], representations: Representations) -> int:
        """Store passages that are encoded already, row i with passage i, and return how many.

        Raises:
            InputError: the numbers differ, a passage cannot be stored, or a vector is not finite.
            IndexMismatchError: the representations were made otherwise than those of the index.
        """
        checked, store = list(checked_passages(passages)), self._store
        self._write(store, checked, representations)
        store.maintain()
        store.flush()
        return len(checked)

    def update(self, passages: Iterable[Passage], *, words: int = WORDS) -> int:
        """Replace passages that exist, and return how many; only those with another text or title are encoded.

        Raises:
            PassageNotFoundError: an id is not there; nothing is changed then.
            InputError: a passage cannot be stored, or a text changed and there is no encoder.
        """
        checked = list(checked_passages(passages))
        records = self._store.records([p.passage_id for p in checked])
        self._refuse_missing([p.passage_id for p, r in zip(checked, records, strict=True) if r is None])
        changed, metadata = [], {}
        for passage, record in zip(checked, records, strict=True):
            if record and (record.passage.text, record.passage.title) == (passage.text, passage.title):
                metadata[passage.passage_id] = passage.metadata
            else:
                changed.append(passage)
        if changed:
            self.add(changed, words=words)
        if metadata:
            self.set_metadata(metadata)
        return len(checked)

    def set_metadata(self, metadata: Mapping[str, Mapping[str, MetadataValue]]) -> None:
        """Replace the metadata of passages by id; nothing is encoded.

        Raises:
            PassageNotFoundError: an id is not there; nothing is changed then.
            InputError: a value is of a type that metadata cannot have.
        """
        checked = {i: checked_metadata(dict(values), i) for i, values in metadata.items()}
        self._refuse_missing(self._missing(list(checked)))
        if checked:
            self._store.set_metadata(checked)
            self._store.maintain()
            self._store.flush()

    def delete(self, passage_ids: str | Iterable[str], *, missing_ok: bool = False) -> int:
        """Remove passages, and return how many were there.

        Args:
            passage_ids: ids, or one id.
            missing_ok: pass over ids that are not there instead of raising.

        Raises:
            PassageNotFoundError: an id is not there; nothing is removed then.
        """
        ids = list(dict.fromkeys([passage_ids] if isinstance(passage_ids, str) else passage_ids))
        missing = set(self._missing(ids))
        if not missing_ok:
            self._refuse_missing([i for i in ids if i in missing])
        present = [i for i in ids if i not in missing]
        if present:
            self._store.delete(present)
            self._store.maintain()
            self._store.flush()
        return len(present)

    def get(self, passage_id: str) -> StoredPassage:
        """Return a passage with its representations.

        Raises:
            PassageNotFoundError: the id is not there.
        """
        if not _is_storable(passage_id) or (stored := self._store.get(passage_id)) is None:
            self._refuse_missing([passage_id])
            raise AssertionError  # unreachable: the line above raises
        return stored

    def search(
        self,
        query: str | Representations,
        k: int = 10,
        mode: Mode = "hybrid",
        *,
        alpha: float = 0.5,
        fusion: FusionName = "minmax",
        where: Filter | str | None = None,
        depth: int = DEPTH,
        dense: Literal["multi", "single"] = "multi",
        exact: bool | None = None,
    ) -> list[Hit]:
        """Return the best passages for one query, best first.

        Args:
            query: its text, or its representations.
            k: how many; fewer come back when fewer match.
            mode: "hybrid" (dense and sparse rankings fused), "multi" (MaxSim), "single" (pooled vectors) or "sparse"
                (shared terms).
            alpha: weight of the dense side in hybrid mode with fusion "minmax", 0 to 1.
            fusion: "minmax" or "rrf".
            where: condition on the metadata, as a filter or as text such as "year>=2020 and lang=en".
            depth: length of the rankings that are fused.
            dense: the dense side of hybrid mode.
            exact: True compares with every passage, False may approximate, None decides by the size of the index.

        Raises:
            InputError: an option is out of range, or a text is given and the index was opened without an encoder.
            IndexMismatchError: the representations were made otherwise than those of the index.
        """
        if isinstance(query, Representations) and len(query) != 1:
            raise InputError(f"search takes one query, got {len(query)}; use search_batch")
        queries = [query] if isinstance(query, str) else query
        return self.search_batch(
            queries, k, mode, alpha=alpha, fusion=fusion, where=where, depth=depth, dense=dense, exact=exact
        )[0]

    def search_batch(
        self,
        queries: Sequence[str] | Representations,
        k: int = 10,
        mode: Mode = "hybrid",
        *,
        alpha: float = 0.5,
        fusion: FusionName = "minmax",
        where: Filter | str | None = None,
        depth: int = DEPTH,
        dense: Literal["multi", "single"] = "multi",
        exact: bool | None = None,
    ) -> list[list[Hit]]:
        """Return the best passages for each query; arguments and errors as in `search`."""
        condition = parse_filter(where) if isinstance(where, str) else where
        options = SearchOptions(k, mode, alpha, fusion, condition, depth, dense, exact)
        options.check(self.manifest)
        store = self._store
        if not isinstance(queries, Representations):
            if isinstance(queries, str):
                raise InputError("search_batch takes a list of queries, got one text; use search")
            queries = self._encoder("searching with text").encode_queries(list(queries))
        self.manifest.check(queries, "queries")
        check_finite(queries, [f"query number {i + 1}" for i in range(len(queries))])
        return search_store(store, queries, options)

    def stats(self) -> IndexStats:
        """Return what the index holds, in numbers."""
        m, path = self.manifest, self._home.path if self._home else None
        size = disk_bytes(path) if isinstance(path, Path) else 0
        return IndexStats(path, m.backend, len(self), m.dim, m.vocabulary_size, m.storage, size, m.provenance)

    def flush(self) -> None:
        """Return when everything written is on disk; every writing method has done so already."""
        self._store.flush()

    def close(self) -> None:
        """Release the folder; doing so twice is harmless."""
        store, self._open_store = self._open_store, None
        if self._home is not None and store is not None:
            self._home.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._store)

    def __iter__(self) -> Iterator[str]:
        """Yield the id of every passage."""
        return self._store.ids()

    def __contains__(self, passage_id: object) -> bool:
        return isinstance(passage_id, str) and not self._missing([passage_id])

    @property
    def _store(self) -> Store:
        if self._open_store is None:
            raise InputError("this index is closed; open it again with Index.open")
        return self._open_store

    def _encoder(self, purpose: str) -> Encoder:
        if self.encoder is None:
            raise InputError(
                f"{purpose} needs an encoder and this index was opened without one; pass it to Index.open "
                f"(the index was made with {self.manifest.provenance.model!r}), or give representations"
            )
        return self.encoder

    def _write(self, store: Store, passages: Sequence[Passage], representations: Representations) -> None:
        self.manifest.check(representations, "passages")
        check_aligned(passages, representations)
        store.upsert(passages, representations)

    def _missing(self, passage_ids: Sequence[str]) -> list[str]:
        storable = [i for i in passage_ids if _is_storable(i)]
        found = {i for i, record in zip(storable, self._store.records(storable), strict=True) if record is not None}
        return [i for i in passage_ids if i not in found]

    def _refuse_missing(self, passage_ids: Sequence[str]) -> None:
        if passage_ids:
            shown = ", ".join(repr(i) for i in passage_ids[:5]) + (", ..." if len(passage_ids) > 5 else "")
            raise PassageNotFoundError(f"the index holds no passage {shown}; iterate over the index for its ids")


def _is_storable(passage_id: str) -> bool:
    """Return whether a string can be an id at all; asking an engine for another would fail obscurely."""
    try:
        check_id(passage_id, "it")
    except InputError:
        return False
    return True
