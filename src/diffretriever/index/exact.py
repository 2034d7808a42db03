"""ExactStore: exhaustive search with torch and scipy over memory-mapped arrays; the oracle of every other store.

On disk it is a log-structured folder: every upsert writes a new segment, and one appended line of `log.jsonl` makes
it count. Deletions and new metadata are lines of the log alone. Small segments are merged now and then.
"""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError
from diffretriever.fusion import Ranking
from diffretriever.index.best import Best
from diffretriever.index.filters import Filter, matches
from diffretriever.index.manifest import Manifest, replace_file
from diffretriever.index.segment import Segment, merge_segments, new_segment, open_segment, write_segment
from diffretriever.index.store import Metadata, Record, StoredPassage, StoreMode
from diffretriever.representations import Representations
from diffretriever.scoring import maxsim_blocks, pooled_scores, sparse_scores

LOG_FILE = "log.jsonl"
#: Above so many segments the small ones are merged.
MAX_SEGMENTS = 8
#: Above so many lines the log is written anew from the present state.
MAX_LOG_LINES = 1000
#: Share of dead rows above which everything is merged, once there are at least so many.
_DEAD_SHARE, _DEAD_LEAST = 0.2, 256
#: Passages or queries scored at once, and most sparse scores held at once.
_PASSAGE_BLOCK, _QUERY_BLOCK, _SPARSE_VALUES = 65536, 512, 2**25


class _Part:
    """A segment with what changes about it: which rows live, and what is derived when first asked for."""

    def __init__(self, segment: Segment, name: str) -> None:
        self.segment = segment
        self.name = name
        self.live = np.ones(len(segment), dtype=np.bool_)
        self.changed: set[int] = set()

    @cached_property
    def has_vectors(self) -> npt.NDArray[np.bool_]:
        return np.diff(self.segment.offsets) > 0

    @cached_property
    def postings(self) -> sp.csr_matrix:
        """[V, N] term weights: the inverted index."""
        return sp.csr_matrix(self.segment.sparse.T)


class ExactStore:
    """Keeps segments of arrays and compares a query with every passage."""

    def __init__(self, folder: Path | None, manifest: Manifest) -> None:
        """Open the store of a folder, new if it is empty, or one that lives in memory when there is no folder.

        Raises:
            IndexFormatError: a file is missing or damaged.
        """
        self._folder = folder
        self._manifest = manifest
        self._parts: list[_Part] = []
        self._places: dict[str, tuple[_Part, int]] = {}
        self._count = 0
        self._log_lines = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._replay(folder)

    def __len__(self) -> int:
        return len(self._places)

    def ids(self) -> Iterator[str]:
        """Yield every id, oldest writing first."""
        yield from list(self._places)

    def upsert(self, passages: Sequence[Passage], representations: Representations) -> None:
        """Store passages; an id that exists is replaced whole."""
        if not passages:
            return
        segment = new_segment(passages, representations, self._manifest.storage)
        name = self._next_name()
        if self._folder is not None:
            segment = write_segment(segment, self._folder / name)
        self._append({"segment": name})
        self._attach(_Part(segment, name))

    def set_metadata(self, metadata: Mapping[str, Metadata]) -> None:
        """Replace the metadata of existing passages."""
        self._append({"metadata": dict(metadata)})
        self._apply_metadata(metadata)

    def delete(self, passage_ids: Sequence[str]) -> None:
        """Remove existing passages."""
        self._append({"delete": list(passage_ids)})
        self._apply_delete(passage_ids)

    def records(self, passage_ids: Sequence[str]) -> list[Record | None]:
        """Return what hits show of these passages; None for an id that is not held."""
        places = [self._places.get(i) for i in passage_ids]
        return [None if place is None else place[0].segment.record(place[1]) for place in places]

    def get(self, passage_id: str) -> StoredPassage | None:
        """Return one passage with its representations, or None."""
        place = self._places.get(passage_id)
        return None if place is None else place[0].segment.stored(place[1], self._manifest.provenance)

    def get_many(self, passage_ids: Sequence[str]) -> list[StoredPassage | None]:
        """Return passages with their representations; None for an id that is not held."""
        return [self.get(i) for i in passage_ids]

    def search(
        self, queries: Representations, mode: StoreMode, k: int, *, where: Filter | None, exact: bool | None
    ) -> list[Ranking]:
        """Return the k best passages of each query; always exact, whatever `exact` says."""
        found: list[Ranking] = []
        for start in range(0, len(queries), _QUERY_BLOCK):
            found.extend(self._search_block(queries.select(slice(start, start + _QUERY_BLOCK)), mode, k, where))
        return found

    def maintain(self) -> None:
        """Merge segments that are many and small, or all when much is dead; shorten a long log."""
        sizes = [int(part.live.sum()) for part in self._parts]
        dead = sum(len(part.segment) for part in self._parts) - sum(sizes)
        if dead >= _DEAD_LEAST and dead > _DEAD_SHARE * (dead + sum(sizes)):
            self._merge(0)
        elif len(self._parts) > MAX_SEGMENTS:
            # What stays is larger than all newer segments together: a row is rewritten log(N) times in all.
            newer, first = sizes[-1], len(sizes) - 1
            for i in range(len(sizes) - 2, -1, -1):
                first = i if sizes[i] <= newer else first
                newer += sizes[i]
            self._merge(first)
        elif self._folder is not None and self._log_lines > MAX_LOG_LINES:
            self._rewrite_log(self._folder, self._parts, [])

    def flush(self) -> None:
        """Do nothing: every writing call has synchronised its files."""

    def close(self) -> None:
        """Let go of the memory maps."""
        self._parts, self._places = [], {}

    def _search_block(self, queries: Representations, mode: StoreMode, k: int, where: Filter | None) -> list[Ranking]:
        best = [Best(k) for _ in range(len(queries))]
        starts = [0]
        for part in self._parts:
            eligible = part.live if where is None else part.live & _mask(part.segment, where)
            if mode == "sparse":
                self._collect_sparse(part, queries, eligible, starts[-1], best)
            else:
                eligible = eligible & part.has_vectors
                if eligible.any():
                    self._collect_dense(part, queries, mode, eligible, starts[-1], best)
            starts.append(starts[-1] + len(part.segment))

        def name(position: int) -> str:
            i = bisect_right(starts, position) - 1
            return self._parts[i].segment.passage_ids[position - starts[i]]

        return [b.ranking(name, floor=0.0 if mode == "sparse" else None) for b in best]

    def _collect_dense(
        self,
        part: _Part,
        queries: Representations,
        mode: StoreMode,
        eligible: npt.NDArray[np.bool_],
        start: int,
        best: Sequence[Best],
    ) -> None:
        # A query without vectors finds nothing, rather than everything with score 0.
        asking = np.flatnonzero(np.diff(queries.offsets))
        if not len(asking):
            return
        for span, scores in self._dense_blocks(part.segment, queries, mode):
            rows = np.flatnonzero(eligible[span])
            for q in asking.tolist():
                best[q].add(scores[q, rows], rows + (span.start + start))

    def _dense_blocks(
        self, segment: Segment, queries: Representations, mode: StoreMode
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield (span of rows, [Q, n] scores). Queries are rounded to the storage precision, as every store does."""
        storage = self._manifest.storage
        if mode == "multi":
            slots = (queries.dense.astype(storage), queries.offsets)
            for span, scores in maxsim_blocks(slots, (segment.dense, segment.offsets)):
                yield span, scores.numpy()
            return
        pooled = queries.pooled.astype(storage)
        for start in range(0, len(segment), _PASSAGE_BLOCK):
            span = slice(start, min(start + _PASSAGE_BLOCK, len(segment)))
            yield span, pooled_scores(pooled, segment.pooled[span]).numpy()

    def _collect_sparse(
        self,
        part: _Part,
        queries: Representations,
        eligible: npt.NDArray[np.bool_],
        start: int,
        best: Sequence[Best],
    ) -> None:
        step = max(1, _SPARSE_VALUES // len(part.segment))
        for first in range(0, len(queries), step):
            scores = sparse_scores(queries.sparse[first : first + step], part.postings)
            for q in range(scores.shape[0]):
                span = slice(scores.indptr[q], scores.indptr[q + 1])
                rows, values = scores.indices[span], scores.data[span]
                keep = eligible[rows] & (values > 0)
                best[first + q].add(values[keep], rows[keep].astype(np.int64) + start)

    def _replay(self, folder: Path) -> None:
        """Rebuild the state from the log; a torn last line, and segments it never named, are thrown away."""
        log = folder / LOG_FILE
        raw = log.read_bytes() if log.is_file() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with log.open("r+b") as file:
                file.truncate(len(whole))
        try:
            for line in whole.splitlines():
                self._replay_entry(folder, json.loads(line))
        except IndexFormatError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise IndexFormatError(
                f"{log} is damaged ({error}); restore the index from a copy or rebuild it"
            ) from error
        self._remove_unnamed(folder)

    def _replay_entry(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self._log_lines += 1
        if "segment" in entry:
            segment = open_segment(folder / entry["segment"], self._manifest.vocabulary_size)
            self._attach(_Part(segment, entry["segment"]))
        elif "delete" in entry:
            self._apply_delete(entry["delete"])
        else:
            self._apply_metadata(entry["metadata"])

    def _attach(self, part: _Part) -> None:
        for row, passage_id in enumerate(part.segment.passage_ids):
            if (old := self._places.pop(passage_id, None)) is not None:
                old[0].live[old[1]] = False
            self._places[passage_id] = (part, row)
        self._parts.append(part)
        self._count = max(self._count, int(part.name))

    def _apply_delete(self, passage_ids: Sequence[str]) -> None:
        for passage_id in passage_ids:
            part, row = self._places.pop(passage_id)
            part.live[row] = False

    def _apply_metadata(self, metadata: Mapping[str, Metadata]) -> None:
        for passage_id, values in metadata.items():
            part, row = self._places[passage_id]
            part.segment.metadata[row] = values
            part.changed.add(row)

    def _merge(self, first: int) -> None:
        """Replace all segments from number `first` on by one without dead rows, and shorten the log."""
        old = self._parts[first:]
        rows = [(part.segment, np.flatnonzero(part.live)) for part in old]
        kept = self._parts[:first]
        name = self._next_name()
        merged = (
            []
            if not any(len(r) for _, r in rows)
            else [_Part(merge_segments(rows, self._folder and self._folder / name), name)]
        )
        if self._folder is not None:
            self._rewrite_log(self._folder, kept, merged)
        self._parts = kept
        for part in merged:
            self._parts.append(part)
            self._places.update({i: (part, row) for row, i in enumerate(part.segment.passage_ids)})
        if self._folder is not None:
            self._remove_unnamed(self._folder)

    def _rewrite_log(self, folder: Path, kept: Sequence[_Part], merged: Sequence[_Part]) -> None:
        """Write the log that leads to the present state: kept segments, what changed in them, the merged one."""
        dead = {part.segment.passage_ids[r] for part in kept for r in np.flatnonzero(~part.live).tolist()}
        # An id may be dead in one kept segment and live in a later one, which replaying brings about by itself.
        gone = sorted(i for i in dead if i not in self._places)
        changed = {p.segment.passage_ids[r]: p.segment.metadata[r] for p in kept for r in p.changed if p.live[r]}
        entries: list[dict[str, object]] = [{"segment": part.name} for part in kept]
        entries += [{"delete": gone}] if gone else []
        entries += [{"metadata": changed}] if changed else []
        entries += [{"segment": part.name} for part in merged]
        replace_file(folder / LOG_FILE, "".join(json.dumps(entry) + "\n" for entry in entries))
        self._log_lines = len(entries)

    def _append(self, entry: Mapping[str, object]) -> None:
        if self._folder is None:
            return
        with (self._folder / LOG_FILE).open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._log_lines += 1

    def _next_name(self) -> str:
        # Counted even when writing then fails: a half-written folder must not be met again.
        self._count += 1
        return f"{self._count:06d}"

    def _remove_unnamed(self, folder: Path) -> None:
        named = {part.name for part in self._parts}
        for path in folder.iterdir():
            if path.is_dir() and path.name.isdigit() and path.name not in named:
                shutil.rmtree(path, ignore_errors=True)


def _mask(segment: Segment, where: Filter) -> npt.NDArray[np.bool_]:
    return np.fromiter((matches(where, m) for m in segment.metadata), dtype=np.bool_, count=len(segment))
