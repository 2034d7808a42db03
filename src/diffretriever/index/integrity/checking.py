"""Checking: whether an index holds what was written to it, passage by passage, and repairing what can be repaired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from diffretriever.errors import IndexFormatError
from diffretriever.index.integrity.digests import Checksum, passage_digest
from diffretriever.index.manifest import Manifest
from diffretriever.index.storage.storage import Storage
from diffretriever.index.store import Fault, Store, StoredPassage

_BATCH = 256
_ROUNDS = 4
#: How far the norm of a stored vector may lie from 1, and the pooled vector from the mean.
_NORM, _MEAN = 5e-3, 2e-3
#: How far the norm of one that is kept as int8 numbers may lie from 1.
_INT8_NORM = 3e-2


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        passages: number of passages that are held, after repairs.
        checksum: of everything that is held, after repairs; equal for equal indexes, whatever engine keeps them.
        problems: what was wrong, in words.
        lost: ids of passages that are damaged; after a repair they are gone and can be added again.
        repaired: whether repairs were made.
    """

    passages: int
    checksum: str
    problems: tuple[str, ...]
    lost: tuple[str, ...] = ()
    repaired: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


def check_store(store: Store, manifest: Manifest, sealed: Checksum | None, *, repair: bool) -> CheckReport:
    """Return what is wrong with a store.

    Args:
        store: an open store.
        manifest: what it should hold.
        sealed: what it held when it was last closed, if it was not written to since.
        repair: whether to mend what can be mended. Passages that are damaged are forgotten.
    """
    faults = _mended(store, manifest) if repair else list(_faults(store, manifest))
    if not faults and sealed is not None and (found := checksum_of(store)) != sealed:
        faults.append(
            Fault(f"it was closed with {sealed.passages} passages ({sealed}) and holds {found.passages} ({found})")
        )
    lost = tuple(dict.fromkeys(f.passage_id for f in faults if f.passage_id is not None))
    held = checksum_of(store) if repair or not faults else None
    return CheckReport(
        passages=len(store) if held is None else held.passages,
        checksum="" if held is None else str(held),
        problems=tuple(fault.text for fault in faults),
        lost=lost,
        repaired=repair and bool(faults),
    )


def _mended(store: Store, manifest: Manifest) -> list[Fault]:
    """Return all faults, mended; what damage hides is seen when that is gone, so the store is read again."""
    found: list[Fault] = []
    for _ in range(_ROUNDS):
        faults = list(_faults(store, manifest))
        found += faults
        if all(fault.mend is None for fault in faults):
            break
        for fault in faults:
            if fault.mend is not None:
                fault.mend()
    store.flush()
    return found


def checksum_of(store: Store) -> Checksum:
    """Return the checksum of all passages by the digests recorded with them."""
    return Checksum.of(d for batch in _batches(store.ids()) for d in store.digests(batch) if d is not None)


def _faults(store: Store, manifest: Manifest) -> Iterator[Fault]:
    """Yield what is wrong; passages first, since mending the files of a store keeps the passages that are left."""
    of_store = list(store.faults())
    count, seen = 0, set()
    try:
        for batch in _batches(store.ids()):
            count += len(batch)
            seen.update(batch)
            yield from _passage_faults(store, manifest, batch)
    except IndexFormatError as error:
        of_store = of_store or [Fault(str(error))]
    else:
        if count != len(seen) or count != len(store):
            yield Fault(f"{count} ids are listed, {len(seen)} of them distinct, of {len(store)} passages")
    yield from of_store


def _passage_faults(store: Store, manifest: Manifest, batch: Sequence[str]) -> Iterator[Fault]:
    try:
        passages, digests = store.get_many(batch), store.digests(batch)
    except IndexFormatError as error:
        if len(batch) > 1:
            half = len(batch) // 2
            yield from _passage_faults(store, manifest, batch[:half])
            yield from _passage_faults(store, manifest, batch[half:])
        else:
            yield _lost(store, batch[0], str(error))
        return
    for passage_id, stored, digest in zip(batch, passages, digests, strict=True):
        if stored is None:
            yield _lost(store, passage_id, "it is listed and cannot be read")
        elif problem := _problem(stored, digest, manifest.storage):
            yield _lost(store, passage_id, problem)


def _lost(store: Store, passage_id: str, problem: str) -> Fault:
    return Fault(f"passage {passage_id!r}: {problem}", partial(store.delete, [passage_id]), passage_id)


def _problem(stored: StoredPassage, digest: bytes | None, storage: Storage) -> str:
    r = stored.representations
    vectors, weights = r.vectors(0), r.sparse.data
    if not np.isfinite(vectors).all() or not np.isfinite(r.pooled).all():
        return "a vector holds NaN or infinity"
    if not np.isfinite(weights).all() or (weights <= 0).any():
        return "a term weight is not a positive number"
    if digest != passage_digest(stored.passage, r, 0):
        return "it is not as it was written"
    if storage.pca is not None or storage.dtype == "binary":  # a projection shortens vectors, and bits lengthen them
        return ""
    norms = np.linalg.norm(vectors, axis=1)
    if len(norms) and (worst := float(abs(norms - 1).max())) > (_INT8_NORM if storage.is_coarse else _NORM):
        return f"a vector's norm is {worst:.3g} away from 1"
    if storage.is_coarse or storage.drop is not None:  # the pooled vector is the mean of the vectors as they were
        return ""
    # Their lengths may differ: only the paper protocol leaves the mean as it is.
    if len(norms) and (gap := float(abs(_unit(vectors.mean(axis=0)) - _unit(r.pooled[0])).max())) > _MEAN:
        return f"the pooled vector points {gap:.3g} away from the mean of the vectors"
    return ""


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def _batches(ids: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for passage_id in ids:
        batch.append(passage_id)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
