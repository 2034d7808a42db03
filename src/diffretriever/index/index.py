"""Index: passages in, hits out; the class users meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import get_args

from diffretriever.corpus import MetadataValue, Passage
from diffretriever.encoder import Encoder
from diffretriever.errors import IndexFormatError, InputError, ServerError, WriteError
from diffretriever.idf import Idf
from diffretriever.index.folder.folder import IndexFolder, open_store
from diffretriever.index.home import backend_of, create_home, load_codec, open_home
from diffretriever.index.integrity.checking import CheckReport, check_store
from diffretriever.index.integrity.checks import check_aligned, checked_metadata, checked_passages
from diffretriever.index.integrity.digests import passage_digest
from diffretriever.index.manifest import Backend, Manifest
from diffretriever.index.reading import IndexReader
from diffretriever.index.storage.codec import Codec
from diffretriever.index.storage.storage import Dtype, Storage
from diffretriever.index.store import Metadata, Store
from diffretriever.index.term_counts import TERM_COUNTS_NOTE, TermCounts
from diffretriever.progress import progress_bar
from diffretriever.representations import Representations

#: Passages encoded and written at once: what an interruption may lose.
BATCH_SIZE = 128
#: Predicted words kept per passage slot.
WORDS = 3


class Index(IndexReader):
    """A searchable collection of passages in a folder, or on a server.

    An index belongs to one encoder: representations made otherwise are refused. One process at a time can hold a
    folder open, and read and write it; `snapshot` makes copies for others to search. A server serves many.

    Example:
        >>> from diffretriever import DiffRetriever, Index, Passage
        >>> with Index.create("my-index", DiffRetriever.from_pretrained("mini")) as index:
        ...     index.add([Passage("p1", "The tilt of the earth's axis causes the seasons.")])
        ...     index.search("what causes the seasons?")[0].passage_id
        'p1'
    """

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        encoder: Encoder | Representations,
        *,
        backend: Backend | None = None,
        storage: Storage | Dtype = "float16",
        sample: Representations | None = None,
        overwrite: bool = False,
        durable: bool = False,
        shards: int | None = None,
        replicas: int | None = None,
        idf: Idf = "collection",
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
            storage: in what form vectors are stored: a dtype, or a `Storage` with all its options.
            sample: representations of some hundred passages or more, for `Storage.pca` to find its components.
            overwrite: replace an index that is already there.
            durable: see `open`.
            shards: parts that a server spreads the passages over; its own default if None.
            replicas: copies of each part on a server; a write returns once most of them have it.
            idf: whether term weights of queries are fitted to the "collection" (see `idf` and `count_terms`) or left
                as the "model" gives them; of no effect where the encoder has no `term_idf`.

        Raises:
            InputError: an option is unknown, or does not go with `path`.
            IndexFormatError: the place holds something else, or an index and `overwrite` is false.
            IndexLockedError: the index to be overwritten is open.
            ServerError: the server cannot be reached, or refuses.
        """
        backend = backend_of(path, backend)
        encodes = None if isinstance(encoder, Representations) else encoder
        vocabulary_size = encoder.sparse.shape[1] if isinstance(encoder, Representations) else encoder.vocabulary_size
        chosen = Storage.of(storage)
        chosen.check(encoder.dim, backend)
        codec = Codec.fit(chosen, sample.dense if sample is not None else None)
        manifest = Manifest(backend, chosen, encoder.dim, int(vocabulary_size), encoder.provenance, codec.digest)
        if idf not in get_args(Idf):
            raise InputError(f"idf must be 'collection' or 'model', got {idf!r}")
        model_idf = encodes.term_idf if encodes is not None and idf == "collection" else None
        terms = None if model_idf is None else TermCounts(model_idf)
        if path is None:
            return cls(manifest, open_store(manifest, None), None, encodes, codec=codec, terms=terms)
        # A part of what the index is: one without the note would leave queries as they are.
        notes = {} if terms is None else {TERM_COUNTS_NOTE: terms.to_json()}
        home = create_home(
            path, manifest, overwrite=overwrite, shards=shards, replicas=replicas, codec=codec, notes=notes
        )
        return cls(manifest, home.store, home, encodes, durable=durable, codec=codec, terms=terms)

    @classmethod
    def open(
        cls, path: str | Path, encoder: Encoder | None = None, *, durable: bool = False, salvage: bool = False
    ) -> Index:
        """Return the index of a folder or of a server.

        Args:
            path: the folder, or the address of a collection, as for `create`.
            encoder: what encodes queries and further passages; without one, everything works but searching and
                adding texts.
            durable: what a writing method promises when it returns. In any case what it wrote is there after the
                process is killed. With durable=True it is also there after a power cut: it is on disk. Otherwise
                that is so after the next `flush` or `close`. (The exact backend is always durable, and a server as
                it is set up.)
            salvage: open what is left of a damaged folder, to `check` and repair it.

        Raises:
            IndexFormatError: the place holds no index, a damaged one, or one of a newer version.
            IndexMismatchError: the encoder is not the one of the index; says what differs.
            IndexLockedError: the folder is open elsewhere.
            ServerError: the server cannot be reached, or refuses.
        """
        home = open_home(path, salvage=salvage)
        try:
            codec = load_codec(home)
            note = None if salvage else home.read_note(TERM_COUNTS_NOTE)
            terms = None if note is None else TermCounts.from_json(note)
            if encoder is not None:
                home.manifest.check_space(encoder.dim, encoder.vocabulary_size, encoder.provenance, "encoder")
        except BaseException:
            home.close()
            raise
        return cls(home.manifest, home.store, home, encoder, durable=durable, codec=codec, terms=terms)

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
        with progress_bar("indexing", total, enabled=progress) as advance:
            while batch := list(islice(checked, batch_size)):
                self._write(store, batch, encoder.encode_passages(batch, words=words))
                # Not only at the end: what many batches leave behind may be more files than a process can open.
                _maintain(store)
                count += len(batch)
                advance(len(batch))
        self._written(store)
        return count

    def add_representations(self, passages: Sequence[Passage], representations: Representations) -> int:
        """Store passages that are encoded already, row i with passage i, and return how many.

        Raises:
            InputError: the numbers differ, a passage cannot be stored, or a vector is not finite.
            IndexMismatchError: the representations were made otherwise than those of the index.
        """
        checked, store = list(checked_passages(passages)), self._store
        self._write(store, checked, representations)
        self._written(store)
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
            WriteError: writing failed, such as on a full disk.
        """
        checked = {i: checked_metadata(dict(values), i) for i, values in metadata.items()}
        self._refuse_missing(self._missing(list(checked)))
        if checked:
            store = self._store
            with _telling(len(checked), "have their new metadata", lambda: _changed(store, checked)):
                self._unsealed(store).set_metadata(checked)
            self._written(store)

    def delete(self, passage_ids: str | Iterable[str], *, missing_ok: bool = False) -> int:
        """Remove passages, and return how many were there.

        Args:
            passage_ids: ids, or one id.
            missing_ok: pass over ids that are not there instead of raising.

        Raises:
            PassageNotFoundError: an id is not there; nothing is removed then.
            WriteError: writing failed, such as on a full disk.
        """
        ids = list(dict.fromkeys([passage_ids] if isinstance(passage_ids, str) else passage_ids))
        missing = set(self._missing(ids))
        if not missing_ok:
            self._refuse_missing([i for i in ids if i in missing])
        present = [i for i in ids if i not in missing]
        if present:
            store = self._store
            with _telling(len(present), "are gone", lambda: _gone(store, present), deletion=True):
                self._unsealed(store).delete(present)
            self._written(store)
        return len(present)

    def flush(self) -> None:
        """Return when everything written is on disk, where a power cut cannot reach it."""
        self._store.flush()

    def check(self, *, repair: bool = False) -> CheckReport:
        """Return what is wrong with the index, if anything; reads all of it.

        Verified are: the number of passages and their ids, that every passage is as it was written (texts, metadata,
        numbers), that vectors are finite and of norm 1, pooled vectors their means and term weights positive, and
        whatever the engine can say of its files.

        Args:
            repair: mend what can be mended. A damaged passage is forgotten, so that it can be added again; the report
                names it.
        """
        home = self._home if isinstance(self._home, IndexFolder) else None
        sealed = home.sealed() if home else None
        if repair:
            self._unsealed(self._store)
        return check_store(self._store, self.manifest, sealed, repair=repair)

    def _write(self, store: Store, passages: Sequence[Passage], representations: Representations) -> None:
        self.manifest.check(representations, "passages")
        check_aligned(passages, representations)
        stored = self._codec.passages(representations)
        with _telling(len(passages), "are stored", lambda: _there(store, passages, stored)):
            self._unsealed(store).upsert(passages, stored)
        if self._durable:
            store.flush()

    def _written(self, store: Store) -> None:
        _maintain(store)
        if self._durable:
            store.flush()

    def _unsealed(self, store: Store) -> Store:
        if isinstance(self._home, IndexFolder):
            self._home.unseal()
        return store


def _maintain(store: Store) -> None:
    # What was written is there; reorganising it is put off where there is no room for that.
    with suppress(OSError):
        store.maintain()


@contextmanager
def _telling(count: int, state: str, done: Callable[[], list[str]], *, deletion: bool = False) -> Iterator[None]:
    """Raise WriteError when a store fails to write passages: it tells how many are `done`, and so in a new state."""
    try:
        yield
    except ServerError:  # says by itself what is stored
        raise
    except (OSError, IndexFormatError) as error:
        ids: list[str] = []
        with suppress(OSError, IndexFormatError):
            ids = done()
        again = "delete those again" if deletion else "writing all of them again is harmless"
        message = f"Of the {count:,} passages of this batch {len(ids):,} {state}, the others are as they were; {again}"
        raise WriteError(f"{error}. {message}", () if deletion else tuple(ids)) from error


def _gone(store: Store, passage_ids: Sequence[str]) -> list[str]:
    return [i for i, record in zip(passage_ids, store.records(passage_ids), strict=True) if record is None]


def _changed(store: Store, metadata: Mapping[str, Metadata]) -> list[str]:
    records = store.records([*metadata])
    return [i for i, record in zip(metadata, records, strict=True) if record and record.passage.metadata == metadata[i]]


def _there(store: Store, passages: Sequence[Passage], representations: Representations) -> list[str]:
    """Return the ids of the passages that are stored just so."""
    digests = store.digests([p.passage_id for p in passages])
    return [
        p.passage_id
        for i, (p, digest) in enumerate(zip(passages, digests, strict=True))
        if digest == passage_digest(p, representations, i)
    ]
