"""IndexReader: what an index answers without being changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from typing_extensions import Self

from diffretriever.encoder import Encoder
from diffretriever.errors import InputError, PassageNotFoundError
from diffretriever.fusion import DEPTH, FusionName, Ranking
from diffretriever.idf import weigh
from diffretriever.index.calibration import CALIBRATION_NOTE, RECALL, Calibration, Recall
from diffretriever.index.filter_text import parse_filter
from diffretriever.index.filters import Filter
from diffretriever.index.folder.folder import IndexFolder
from diffretriever.index.hit import Hit
from diffretriever.index.home import IndexHome
from diffretriever.index.integrity.checking import checksum_of
from diffretriever.index.integrity.checks import check_finite, check_id
from diffretriever.index.manifest import Manifest
from diffretriever.index.recall import calibrate, measure
from diffretriever.index.searching import Mode, SearchOptions, hybrid_rankings, search_store
from diffretriever.index.stats import IndexStats, disk_bytes
from diffretriever.index.storage.codec import Codec
from diffretriever.index.store import Store, StoredPassage
from diffretriever.index.term_counts import TERM_COUNTS_NOTE, TermCounts
from diffretriever.representations import Representations


class IndexReader:
    """The reading half of `Index`."""

    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        home: IndexHome | None,
        encoder: Encoder | None,
        *,
        durable: bool = False,
        codec: Codec | None = None,
        terms: TermCounts | None = None,
    ) -> None:
        """Wrap an open store; use `create` or `open`."""
        self.manifest = manifest
        self.encoder = encoder
        self._home = home
        self._open_store: Store | None = store
        self._codec = codec or Codec(manifest.storage)
        self._durable = durable
        self._calibration: Calibration | None = None
        self._terms = terms

    def get(self, passage_id: str) -> StoredPassage:
        """Return a passage with its representations.

        Raises:
            PassageNotFoundError: the id is not there.
        """
        if not _is_storable(passage_id) or (stored := self._store.get(passage_id)) is None:
            self._refuse_missing([passage_id])
            raise AssertionError  # unreachable: the line above raises
        return replace(stored, representations=self._codec.restored(stored.representations))

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
        recall: float = RECALL,
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
            recall: share of the truly best passages that an approximate MaxSim ranking should find; see `calibrate`.

        Raises:
            InputError: an option is out of range, or a text is given and the index was opened without an encoder.
            IndexMismatchError: the representations were made otherwise than those of the index.
        """
        if isinstance(query, Representations) and len(query) != 1:
            raise InputError(f"search takes one query, got {len(query)}; use search_batch")
        queries = [query] if isinstance(query, str) else query
        return self.search_batch(
            queries,
            k,
            mode,
            alpha=alpha,
            fusion=fusion,
            where=where,
            depth=depth,
            dense=dense,
            exact=exact,
            recall=recall,
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
        recall: float = RECALL,
    ) -> list[list[Hit]]:
        """Return the best passages for each query; arguments and errors as in `search`."""
        condition = parse_filter(where) if isinstance(where, str) else where
        options = SearchOptions(k, mode, alpha, fusion, condition, depth, dense, exact, recall)
        options.check(self.manifest)
        store = self._store
        if not isinstance(queries, Representations):
            if isinstance(queries, str):
                raise InputError("search_batch takes a list of queries, got one text; use search")
            queries = self._encoder("searching with text").encode_queries(list(queries))
        return search_store(store, self._compared(queries), options, self.current_calibration)

    def rankings(
        self, queries: Representations, dense: Literal["multi", "single"] = "multi", *, depth: int = DEPTH
    ) -> list[tuple[Ranking, Ranking]]:
        """Return the dense and the sparse ranking that hybrid search fuses, for each query."""
        options = SearchOptions(1, "hybrid", 0.5, "minmax", None, depth, dense, None)
        options.check(self.manifest)
        return hybrid_rankings(self._store, self._compared(queries), options, self.current_calibration)

    def comparable(self, queries: Representations) -> Representations:
        """Return queries with the numbers that the index compares; products with `get` give the scores of a search."""
        return self._codec.restored(self._compared(queries))

    def calibrate(self) -> Calibration:
        """Measure how many candidates an approximate search must score for which recall, and keep that with the index.

        The queries are made of the index's own passages. A search of a folder does this by itself when it must
        approximate and nothing was measured yet, or the index has since grown or shrunk by half; on a server, where it
        takes longer, it is done when asked for. Building by the command line does it at the end.
        """
        made = calibrate(self._store, self.manifest)
        self._calibration = made
        if self._home is not None:
            with suppress(OSError):  # a folder that is read-only
                self._home.write_note(CALIBRATION_NOTE, made.to_json())
        return made

    def count_terms(self) -> None:
        """Count in how many passages terms stand, and keep that with the index; see `idf`.

        A search of a folder or in memory does this by itself when nothing was counted yet, or the index has since grown
        or shrunk by half; on a server it is done when asked for. Building by the command line does it at the end. An
        index whose model does not say how rare it takes terms to be, or made with `idf="model"`, counts nothing.
        """
        if self._terms is not None and len(self):
            self._terms = self._terms.counted(self._store)
            if self._home is not None:
                with suppress(OSError):  # a folder that is read-only
                    self._home.write_note(TERM_COUNTS_NOTE, self._terms.to_json())

    def current_terms(self) -> TermCounts | None:
        """Return what was counted of the index's terms; counted now where need be, but never on a server."""
        stale = self._terms is not None and not self._terms.fits(len(self))
        if stale and isinstance(self._home, IndexFolder | None):
            self.count_terms()
        return self._terms

    def recalls(self, queries: Sequence[str] | Representations, lengths: Sequence[int] = (10, 100)) -> list[Recall]:
        """Return what approximate searches of several depths find for some queries, against comparing with everything.

        Args:
            queries: texts, or representations.
            lengths: lengths of the rankings that are compared.
        """
        if not isinstance(queries, Representations):
            queries = self._encoder("searching with text").encode_queries(list(queries))
        return list(measure(self._store, self._compared(queries), lengths))

    def is_approximate(self, query_slots: int) -> bool:
        """Return whether MaxSim searches by queries of so many vectors approximate where the caller does not say."""
        return self._store.approximates("multi", query_slots)

    def current_calibration(self) -> Calibration | None:
        """Return what was measured of approximate searches; measured now where need be, but never on a server."""
        if self._calibration is None and self._home is not None:
            note = self._home.read_note(CALIBRATION_NOTE)
            self._calibration = None if note is None else Calibration.from_json(note)
        if not isinstance(self._home, IndexFolder):
            return self._calibration
        if self._calibration is None or not self._calibration.fits(len(self)):
            return self.calibrate()
        return self._calibration

    def checksum(self) -> str:
        """Return a checksum of everything the index holds; equal for equal indexes, whatever engine keeps them."""
        return str(checksum_of(self._store))

    def snapshot(self, path: str | Path) -> None:
        """Write a copy of the index as it is now into a new folder.

        The copy appears in one step when it is complete, and opens as any index does, also while this one is open and
        written to. It is how several processes search: each opens a snapshot of its own.

        Args:
            path: a folder that does not exist, or is empty.

        Raises:
            InputError: it exists already, or the index is in memory or on a server.
        """
        if not isinstance(self._home, IndexFolder):
            raise InputError("only an index in a folder has snapshots; a server makes its own")
        self._store.flush()
        self._home.snapshot(Path(path))

    def stats(self) -> IndexStats:
        """Return what the index holds, in numbers."""
        m, path = self.manifest, self._home.path if self._home else None
        size = disk_bytes(path) if isinstance(path, Path) else 0
        return IndexStats(path, m.backend, len(self), m.dim, m.vocabulary_size, m.storage, size, m.provenance)

    def close(self) -> None:
        """Release the folder; doing so twice is harmless."""
        store, self._open_store = self._open_store, None
        if self._home is not None and store is not None:
            self._home.close()

    def __enter__(self) -> Self:
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

    def _compared(self, queries: Representations) -> Representations:
        """Return queries as the store compares them."""
        self.manifest.check(queries, "queries")
        check_finite(queries, [f"query number {i + 1}" for i in range(len(queries))])
        terms = self.current_terms()
        if terms is not None and terms.factors is not None:
            queries = weigh(queries, terms.factors)
        return self._codec.queries(queries)

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

    def _missing(self, passage_ids: Sequence[str]) -> list[str]:
        storable = [i for i in passage_ids if _is_storable(i)]
        found = {i for i, record in zip(storable, self._store.records(storable), strict=True) if record is not None}
        return [i for i in passage_ids if i not in found]

    def _refuse_missing(self, passage_ids: Sequence[str]) -> None:
        if passage_ids:
            shown = ", ".join(repr(i) for i in passage_ids[:5]) + (", ..." if len(passage_ids) > 5 else "")
            raise PassageNotFoundError(
                f"the index holds no passage {shown}; `diffretriever search DIR QUESTION` shows ids, and iterating "
                "over the index gives them all"
            )


def _is_storable(passage_id: str) -> bool:
    """Return whether a string can be an id at all; asking an engine for another would fail obscurely."""
    try:
        check_id(passage_id, "it")
    except InputError:
        return False
    return True
