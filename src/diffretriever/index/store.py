"""Store: what an index needs of the engine that keeps its passages and searches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from diffretriever.corpus import MetadataValue, Passage
from diffretriever.fusion import Ranking
from diffretriever.index.filters import Filter
from diffretriever.representations import Representations, SlotWord

DenseMode = Literal["single", "multi"]
StoreMode = DenseMode | Literal["sparse"]
Metadata = dict[str, MetadataValue]
SlotWordRows = tuple[tuple[SlotWord, ...], ...]


@dataclass(frozen=True)
class Record:
    """What a hit shows of a passage.

    Attributes:
        passage: the passage.
        slot_words: predicted words of each slot, best first; empty when none were stored.
    """

    passage: Passage
    slot_words: SlotWordRows


@dataclass(frozen=True)
class StoredPassage:
    """Everything an index holds of one passage.

    Attributes:
        passage: the passage.
        representations: its vectors, pooled vector, term weights and slot words; exactly one text, of the precision
            of the index.
    """

    passage: Passage
    representations: Representations

    @property
    def slot_words(self) -> list[list[SlotWord]]:
        """Predicted words of each slot, best first; [] when none were stored."""
        return self.representations.slot_words(0)


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a store.

    Attributes:
        text: what, where, in words.
        mend: puts it right as far as that can be done; None when it cannot. Mending a lost passage forgets it, so that
            it can be added again.
        passage_id: the passage that it is about, when it is one and its id is known.
    """

    text: str
    mend: Callable[[], None] | None = None
    passage_id: str | None = None


class Store(Protocol):
    """Keeps passages with their representations and ranks them.

    Ids, metadata and representations are checked by `Index` before they come here. A store is used by one process
    and one thread at a time. When the process is killed while it writes, every passage is there whole or not at all;
    `flush` makes what was written before it survive a power cut. The numbers that come here are those to be stored: the
    precision of the index loses nothing more of them.
    """

    def __len__(self) -> int:
        """Return the number of passages."""
        ...

    def ids(self) -> Iterator[str]:
        """Yield the id of every passage, in no promised order."""
        ...

    def upsert(self, passages: Sequence[Passage], representations: Representations) -> None:
        """Store passages, row i of `representations` with passage i; an id that exists is replaced whole."""
        ...

    def set_metadata(self, metadata: Mapping[str, Metadata]) -> None:
        """Replace the metadata of existing passages."""
        ...

    def delete(self, passage_ids: Sequence[str]) -> None:
        """Remove existing passages."""
        ...

    def records(self, passage_ids: Sequence[str]) -> list[Record | None]:
        """Return what hits show of these passages, in order; None for an id that is not held."""
        ...

    def get(self, passage_id: str) -> StoredPassage | None:
        """Return one passage with its representations, or None."""
        ...

    def get_many(self, passage_ids: Sequence[str]) -> list[StoredPassage | None]:
        """Return passages with their representations, in order; None for an id that is not held."""
        ...

    def digests(self, passage_ids: Sequence[str]) -> list[bytes | None]:
        """Return the `digests.passage_digest` recorded when each passage was written; None for an id not held."""
        ...

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong in a way that only the engine can see; slow, reads everything."""
        ...

    def snapshot(self, folder: Path) -> None:
        """Write a consistent copy of everything into a folder that does not exist."""
        ...

    def search(
        self,
        queries: Representations,
        mode: StoreMode,
        k: int,
        *,
        where: Filter | None,
        exact: bool | None,
        depth: int | None = None,
    ) -> list[Ranking]:
        """Return the k best passages of each query: score descending, passage id ascending where scores are equal.

        Dense modes never list a passage without vectors, "sparse" none that shares no term with the query. A query
        without vectors, or without terms, finds nothing. Queries are rounded to the storage precision.

        Args:
            queries: Q encoded queries.
            mode: "single" (pooled product), "multi" (MaxSim, floored at 0 per query slot) or "sparse".
            k: length of each ranking, at least 1.
            where: condition on the metadata.
            exact: True compares with every passage, False may approximate, None lets the store choose.
            depth: candidates that an approximate "multi" search scores; None lets the store choose.
        """
        ...

    def search_both(
        self,
        queries: Representations,
        dense: DenseMode,
        k: int,
        *,
        where: Filter | None,
        exact: bool | None,
        depth: int | None = None,
    ) -> tuple[list[Ranking], list[Ranking]]:
        """Return the dense and the sparse rankings of each query, asked for together where the engine takes both.

        They are those of `search`, but for approximate dense ones: these also compare the k passages that "sparse"
        ranks first, so that what the terms find gets its own dense score.
        """
        ...

    def approximates(self, mode: StoreMode, query_slots: int) -> bool:
        """Return whether a dense search that leaves the choice to the store would approximate."""
        ...

    def maintain(self) -> None:
        """Reorganise what many writes left behind, where that pays."""
        ...

    def flush(self) -> None:
        """Return when everything written is on disk."""
        ...

    def close(self) -> None:
        """Flush and release all resources."""
        ...
