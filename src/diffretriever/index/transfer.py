"""Transfer: an index copied to another place, between any two engines, without encoding anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from diffretriever.errors import IndexMismatchError, InputError
from diffretriever.index.cluster.location import is_cluster
from diffretriever.index.home import backend_of, create_home, home_exists
from diffretriever.index.index import Index
from diffretriever.index.integrity.digests import Checksum, passage_digest
from diffretriever.index.manifest import Backend, Manifest
from diffretriever.index.notes import PROMPT_NOTE, read_note, write_note
from diffretriever.index.reading import IndexReader
from diffretriever.index.storage.codec import Codec
from diffretriever.index.store import Store, StoredPassage
from diffretriever.index.term_counts import TERM_COUNTS_NOTE
from diffretriever.progress import Advance, progress_bar
from diffretriever.representations import Representations

#: Most passages, and about most numbers, that are read and written at once.
_PASSAGES, _NUMBERS = 512, 2_000_000
#: Batches after which the target may reorganise itself.
_MAINTAIN_EVERY = 20


@dataclass(frozen=True)
class Transfer:
    """What a transfer did, and what both sides hold after it.

    Attributes:
        written: passages that the target lacked or had otherwise.
        unchanged: passages that the target held already.
        mended: passages, written or unchanged, that the target did not hold as it had recorded, written anew.
        removed: passages that only the target held, and that were removed.
        extra: passages that only the target holds still.
        source: checksum of the source.
        target: checksum of the target without the extra passages, computed from what was read back.
    """

    written: int
    unchanged: int
    mended: int
    removed: int
    extra: int
    source: Checksum
    target: Checksum

    @property
    def complete(self) -> bool:
        """Whether the target holds what the source does and nothing else."""
        return self.source == self.target and not self.extra


def transfer(source: IndexReader, target: Index, *, delete: bool = False, progress: bool = False) -> Transfer:
    """Copy the passages of one open index into another, with their vectors, terms, words and metadata.

    Passages that the target records with the same content are left alone, so a transfer that was interrupted is
    completed by doing it again. At the end everything is read back from the target and compared; if it is not what was
    recorded, what differs is written anew, once.

    Args:
        source: the index to copy; it must not be written to meanwhile.
        target: the index to fill, made alike.
        delete: remove from the target what the source does not hold.
        progress: whether to show progress bars on a terminal.

    Raises:
        IndexMismatchError: the two were made otherwise; nothing is written then.
        ServerError: a server failed; what was written stays.
    """
    check_alike(source.manifest, target.manifest)
    copy = _Copy(source._store, target._unsealed(target._store), _batch_size(source.manifest))
    with progress_bar("copying", len(source), enabled=progress) as advance:
        sent = Checksum.of(copy.digests(advance))
    extra = copy.extra() if len(target) > sent.passages else set()
    removed = 0
    if delete and extra:
        removed, extra = target.delete(sorted(extra)), set()
    received, written, mended = copy.received(extra, progress), copy.written, 0
    if received != sent:
        copy.thorough = True
        with progress_bar("mending", len(source), enabled=progress) as advance:
            sent = Checksum.of(copy.digests(advance))
        received, mended = copy.received(extra, progress), copy.written - written
    return Transfer(written, sent.passages - written, mended, removed, len(extra), sent, received)


def copy_index(
    source: str | Path,
    target: str | Path,
    *,
    backend: Backend | None = None,
    shards: int | None = None,
    replicas: int | None = None,
    delete: bool = False,
    progress: bool = False,
) -> Transfer:
    """Copy an index to another place, made if it does not exist; see `transfer`.

    Args:
        source: folder or address of the index to copy.
        target: folder or address of the copy.
        backend: engine of a new folder; if None "edge", or "exact" for what only that can store.
        shards: parts that a new collection is spread over.
        replicas: copies of each part of a new collection.
        delete: remove from the target what the source does not hold.
        progress: whether to show progress bars on a terminal.

    Raises:
        InputError: source and target are the same, or an option does not go with the target.
        IndexFormatError: one of them is no index.
        IndexMismatchError: they were made otherwise.
        IndexLockedError: one of them is open.
        ServerError: a server failed; what was written stays.
    """
    if str(source) == str(target):
        raise InputError(f"{source} is source and target at once; choose another target")
    with (
        Index.open(source) as old,
        Index.open(target) if home_exists(target) else _empty_copy(old, target, backend, shards, replicas) as new,
    ):
        done = transfer(old, new, delete=delete, progress=progress)
        for name, text in _notes(old).items():
            write_note(new, name, text)
    return done


def _notes(index: IndexReader) -> dict[str, str]:
    """Return the notes that belong to what an index holds, wherever it is."""
    prompt, terms = read_note(index, PROMPT_NOTE), index.current_terms()
    notes = {PROMPT_NOTE: prompt, TERM_COUNTS_NOTE: None if terms is None else terms.to_json()}
    return {name: text for name, text in notes.items() if text is not None}


def _empty_copy(
    source: IndexReader,
    target: str | Path,
    backend: Backend | None,
    shards: int | None,
    replicas: int | None,
) -> Index:
    """Return a new index that stores what the source does, and has its notes.

    It has them from the beginning, since a copy that was interrupted would rank otherwise without them.
    """
    made = source.manifest
    kind = backend_of(target, backend or ("exact" if made.storage.is_coarse and not is_cluster(target) else None))
    # Codes are the embedded engine's own; what they choose candidates of is stored beside them.
    storage = made.storage if kind == "edge" else made.storage.without_codes()
    storage.check(made.dim, kind)
    manifest = replace(made, backend=kind, storage=storage)
    codec = Codec(storage, source._codec.projection)
    options = {"shards": shards, "replicas": replicas}
    home = create_home(target, manifest, overwrite=False, codec=codec, notes=_notes(source), **options)
    return Index(manifest, home.store, home, None, codec=codec)


def check_alike(source: Manifest, target: Manifest) -> None:
    """Raise IndexMismatchError unless what the one stores can be stored in the other as it is."""
    target.check_space(source.dim, source.vocabulary_size, source.provenance, "source")
    ours, theirs = (m.storage.without_codes() for m in (source, target))
    if (ours, source.projection) != (theirs, target.projection):
        what = "by another projection" if ours == theirs else f"as {target.storage}"
        raise IndexMismatchError(
            f"the source stores vectors as {source.storage} and the target {what}; choose another target"
        )


class _Copy:
    """Copying, batch by batch.

    Attributes:
        batch_size: passages at a time.
        written: passages that were written.
        thorough: whether to look at what the target holds rather than at what it recorded of it.
    """

    def __init__(self, source: Store, target: Store, batch_size: int) -> None:
        self.batch_size = batch_size
        self.written = 0
        self.thorough = False
        self._source = source
        self._target = target
        self._empty = len(target) == 0

    def digests(self, advance: Advance) -> Iterator[bytes]:
        """Copy everything, yielding the digest of each passage of the source."""
        try:
            for number, stored in enumerate(_stored(self._source, self.batch_size), 1):
                digests = [_digest(s) for s in stored]
                self._copy(stored, digests)
                if number % _MAINTAIN_EVERY == 0:
                    self._target.maintain()
                advance(len(stored))
                yield from digests
            self._target.maintain()
        finally:
            self._target.flush()

    def extra(self) -> set[str]:
        """Return the ids that only the target holds."""
        found: set[str] = set()
        for ids in _chunks(self._target.ids(), _PASSAGES):
            records = self._source.records(ids)
            found.update(i for i, record in zip(ids, records, strict=True) if record is None)
        return found

    def received(self, extra: set[str], progress: bool) -> Checksum:
        """Return the checksum of what is read back from the target, without the extra passages."""
        with progress_bar("checking", len(self._target), enabled=progress) as advance:
            return Checksum.of(_digests(self._target, self.batch_size, advance, extra))

    def _copy(self, stored: Sequence[StoredPassage], digests: Sequence[bytes]) -> None:
        ids = [s.passage.passage_id for s in stored]
        held: Sequence[bytes | None] = [None] * len(ids)
        if self.thorough:
            held = [None if s is None else _digest(s) for s in self._target.get_many(ids)]
        elif not self._empty:
            held = self._target.digests(ids)
        new = [s for s, here, there in zip(stored, digests, held, strict=True) if here != there]
        for passages in _by_words(new):
            rows = Representations.concatenate([s.representations for s in passages])
            self._target.upsert([s.passage for s in passages], rows)
        self.written += len(new)


def _stored(store: Store, batch_size: int) -> Iterator[list[StoredPassage]]:
    for ids in _chunks(store.ids(), batch_size):
        yield [stored for stored in store.get_many(ids) if stored is not None]


def _digests(store: Store, batch_size: int, advance: Advance, without: set[str]) -> Iterator[bytes]:
    for batch in _stored(store, batch_size):
        yield from (_digest(s) for s in batch if s.passage.passage_id not in without)
        advance(len(batch))


def _digest(stored: StoredPassage) -> bytes:
    return passage_digest(stored.passage, stored.representations, 0)


def _by_words(stored: Iterable[StoredPassage]) -> list[list[StoredPassage]]:
    """Return the passages grouped by the number of words per slot, which is one for all rows of representations."""
    groups: dict[int, list[StoredPassage]] = {}
    for s in stored:
        words = s.representations.words
        groups.setdefault(-1 if words is None else words.ids.shape[1], []).append(s)
    return list(groups.values())


def _chunks(ids: Iterator[str], size: int) -> Iterator[list[str]]:
    while chunk := list(islice(ids, size)):
        yield chunk


def _batch_size(manifest: Manifest) -> int:
    return max(1, min(_PASSAGES, _NUMBERS // max(1, manifest.width * (manifest.provenance.passage_slots + 2))))
