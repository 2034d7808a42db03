"""ExactStore: exhaustive search with torch and scipy over memory-mapped arrays; the oracle of every other store.

On disk it is a log-structured folder: every upsert writes a new segment, and one appended line of `log.jsonl` makes
it count. Deletions and new metadata are lines of the log alone. Small segments are merged now and then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from diffretriever.corpus import Passage
from diffretriever.errors import IndexFormatError, InputError
from diffretriever.fusion import Ranking
from diffretriever.index.exact.log import LOG_FILE, LogEntry, SegmentLog
from diffretriever.index.exact.part import Part
from diffretriever.index.exact.search import search_parts
from diffretriever.index.exact.segment import (
    file_sums,
    merge_segments,
    new_segment,
    open_segment,
    write_segment,
)
from diffretriever.index.filters import Filter
from diffretriever.index.folder.copying import copy_file, copy_folder
from diffretriever.index.manifest import Manifest, sync_folder
from diffretriever.index.store import DenseMode, Fault, Metadata, Record, StoredPassage, StoreMode
from diffretriever.interrupts import uninterrupted
from diffretriever.representations import Representations

#: Above so many segments the small ones are merged.
MAX_SEGMENTS = 8
#: Above so many lines the log is written anew from the present state.
MAX_LOG_LINES = 1000
#: Share of dead rows above which everything is merged, once there are at least so many.
_DEAD_SHARE, _DEAD_LEAST = 0.2, 256
#: Queries scored at once.
_QUERY_BLOCK = 512


class ExactStore:
    """Keeps segments of arrays and compares a query with every passage."""

    def __init__(self, folder: Path | None, manifest: Manifest, *, salvage: bool = False) -> None:
        """Open the store of a folder, new if it is empty, or one that lives in memory when there is no folder.

        Args:
            folder: the folder.
            manifest: what it holds.
            salvage: open what is left of a damaged one; `faults` then says what is not.

        Raises:
            IndexFormatError: a file is missing or damaged.
        """
        self._folder = folder
        self._manifest = manifest
        self._parts: list[Part] = []
        self._places: dict[str, tuple[Part, int]] = {}
        self._count = 0
        self._salvaged: list[str] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._log = SegmentLog(folder)
            if any(folder.iterdir()):
                self._replay(folder, salvage=salvage)
            else:
                self._log.create()

    def __len__(self) -> int:
        return len(self._places)

    def ids(self) -> Iterator[str]:
        """Yield every id, oldest writing first."""
        yield from list(self._places)

    def upsert(self, passages: Sequence[Passage], representations: Representations) -> None:
        """Store passages; an id that exists is replaced whole."""
        if not passages:
            return
        segment = new_segment(passages, representations, self._manifest)
        self._remove_unnamed()
        name = self._next_name()
        with self._discarding(name):
            if self._folder is not None:
                segment = write_segment(segment, self._folder / name, self._manifest)
            part = Part(segment, name, self._sums(name))
        self._commit(LogEntry(segment=name, sums=part.sums), partial(self._attach, part))

    def set_metadata(self, metadata: Mapping[str, Metadata]) -> None:
        """Replace the metadata of existing passages."""
        self._commit(LogEntry(metadata=metadata), partial(self._apply_metadata, metadata))

    def delete(self, passage_ids: Sequence[str]) -> None:
        """Remove existing passages."""
        self._commit(LogEntry(delete=tuple(passage_ids)), partial(self._apply_delete, passage_ids))

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

    def digests(self, passage_ids: Sequence[str]) -> list[bytes | None]:
        """Return the digest recorded when each passage was written; None for an id that is not held."""
        places = [self._places.get(i) for i in passage_ids]
        return [None if place is None else place[0].segment.digest(place[1]) for place in places]

    def faults(self) -> Iterator[Fault]:
        """Yield what was wrong when a damaged store was opened, and files that are not as they were written."""
        for text in self._salvaged:
            yield Fault(text, self._forget_salvaged)
        for part in list(self._parts):
            for name in self._changed_files(part):
                yield Fault(f"{part.name}/{name} is not as it was written", self._renew)

    def snapshot(self, folder: Path) -> None:
        """Write a copy into a new folder; segments never change, so they are copied file by file."""
        if self._folder is None:
            raise InputError("an index in memory has no files to copy; make it with a path")
        self._log.settle()
        folder.mkdir(parents=True)
        for part in self._parts:
            copy_folder(self._folder / part.name, folder / part.name)
        copy_file(self._log.path, folder / LOG_FILE)
        sync_folder(folder)

    def _changed_files(self, part: Part) -> list[str]:
        if self._folder is None or not part.sums:
            return []
        try:
            found = file_sums(self._folder / part.name)
        except OSError as error:
            return [str(error)]
        return sorted(name for name in {*found, *part.sums} if found.get(name) != part.sums.get(name))

    def _forget_salvaged(self) -> None:
        if self._salvaged and self._folder is not None:
            self._salvaged = []
            for name in self._unnamed(self._folder):
                (self._folder / name).rename(self._folder / f"damaged-{name}")
            self._merge(0)

    def _renew(self) -> None:
        """Write damaged segments anew, with the rows that are left."""
        if any(self._changed_files(part) for part in self._parts):
            self._merge(0)

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
        """Return the k best passages of each query; always exact, whatever the options say."""
        found: list[Ranking] = []
        for start in range(0, len(queries), _QUERY_BLOCK):
            found += search_parts(self._parts, queries.select(slice(start, start + _QUERY_BLOCK)), mode, k, where)
        return found

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
        """Return the dense and the sparse rankings of each query."""
        found = [self.search(queries, mode, k, where=where, exact=exact) for mode in (dense, "sparse")]
        return found[0], found[1]

    def approximates(self, mode: StoreMode, query_slots: int) -> bool:
        """Return False: every passage is compared."""
        return False

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
        elif self._folder is not None and self._log.lines > MAX_LOG_LINES:
            with uninterrupted():
                self._rewrite_log(self._parts, [])

    def flush(self) -> None:
        """Do nothing: every writing call has synchronised its files."""

    def close(self) -> None:
        """Let go of the memory maps; OSError when it is not certain what the log holds."""
        try:
            if self._folder is not None:
                self._log.settle()
        finally:
            self._parts, self._places = [], {}

    def _replay(self, folder: Path, *, salvage: bool) -> None:
        """Rebuild the state from the log."""
        entries, problems = self._log.read()
        if not salvage and problems:
            raise self._log.damaged(problems)
        if salvage and not entries:
            entries = [LogEntry(segment=name) for name in _segment_names(folder)]
            problems.append("deletions and new metadata since each segment was written are lost with the log")
        for entry in entries:
            try:
                self._replay_entry(folder, entry, salvage=salvage)
            except (KeyError, TypeError, AttributeError) as error:
                problems.append(f"{self._log.path} is damaged ({error}): it changes what is not there")
            except IndexFormatError as error:
                problems.append(str(error))
                if not salvage:
                    raise
        self._count = max([self._count, *map(int, _segment_names(folder))])
        strangers = self._unnamed(folder) - {name for entry in entries for name in entry.replaced}
        last = max((int(entry.segment) for entry in entries if entry.segment), default=0)
        # A write that was cut off leaves a segment above all that count; anything else is no doing of this class.
        if entries and (lost := sorted(name for name in strangers if int(name) < last)) and not salvage:
            problems.append(f"{self._log.path} does not name the segments {', '.join(lost)}")
        if problems and not salvage:
            raise self._log.damaged(problems)
        self._salvaged = problems

    def _replay_entry(self, folder: Path, entry: LogEntry, *, salvage: bool) -> None:
        if entry.segment:
            if not entry.segment.isdigit():
                raise KeyError(entry.segment)
            segment = open_segment(folder / entry.segment, self._manifest)
            self._attach(Part(segment, entry.segment, entry.sums))
        held = self._places if salvage else {*entry.delete, *entry.metadata}
        self._apply_delete([i for i in entry.delete if i in held])
        self._apply_metadata({i: values for i, values in entry.metadata.items() if i in held})

    def _attach(self, part: Part) -> None:
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
        kept, merged = self._parts[:first], []
        if any(len(r) for _, r in rows):
            name = self._next_name()
            with self._discarding(name):
                segment = merge_segments(rows, self._folder and self._folder / name, self._manifest)
                merged.append(Part(segment, name, self._sums(name)))
        with uninterrupted():
            try:
                self._rewrite_log(kept, merged)
            except OSError:  # the old log stands
                for part in merged:
                    self._discard(part.name)
                raise
            self._parts = [*kept, *merged]
            for part in merged:
                self._places.update({i: (part, row) for row, i in enumerate(part.segment.passage_ids)})
        self._remove_unnamed()

    def _rewrite_log(self, kept: Sequence[Part], merged: Sequence[Part]) -> None:
        """Write the log that leads to the present state: kept segments, what changed in them, the merged one."""
        if self._folder is None:
            return
        dead = {part.segment.passage_ids[r] for part in kept for r in np.flatnonzero(~part.live).tolist()}
        # An id may be dead in one kept segment and live in a later one, which replaying brings about by itself.
        gone = tuple(sorted(i for i in dead if i not in self._places))
        changed = {p.segment.passage_ids[r]: p.segment.metadata[r] for p in kept for r in p.changed if p.live[r]}
        # Those of this merge, and of an earlier one that could not remove them.
        replaced = tuple(sorted({*_segment_names(self._folder)} - {part.name for part in (*kept, *merged)}))
        entries = [LogEntry(segment=part.name, sums=part.sums) for part in kept]
        entries += [LogEntry(delete=gone)] if gone else []
        entries += [LogEntry(metadata=changed)] if changed else []
        entries += [LogEntry(segment=part.name, sums=part.sums) for part in merged]
        entries += [LogEntry(replaced=replaced)] if replaced else []
        self._log.rewrite(entries)

    def _commit(self, entry: LogEntry, apply: Callable[[], None]) -> None:
        """Log a change, then make it in memory; on an error neither is done.

        Ctrl-C waits: between the two it would leave memory behind the log, and a segment that the log already names
        would be taken for one that does not count.
        """
        with uninterrupted():
            if self._folder is not None:
                try:
                    self._log.append(entry)
                except OSError:
                    if self._log.is_settled and entry.segment:
                        self._discard(entry.segment)
                    raise
            apply()

    @contextmanager
    def _discarding(self, name: str) -> Iterator[None]:
        """Remove a segment again when writing it fails; the log must not name it before the block is done."""
        try:
            yield
        except BaseException:
            self._discard(name)
            raise

    def _discard(self, name: str) -> None:
        """Remove a segment that the log does not name, so that it does not fill a disk that is full."""
        if self._folder is not None:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _sums(self, name: str) -> Mapping[str, str]:
        return file_sums(self._folder / name) if self._folder is not None else {}

    def _next_name(self) -> str:
        # Counted even when writing then fails: a half-written folder must not be met again.
        self._count += 1
        return f"{self._count:06d}"

    def _unnamed(self, folder: Path) -> set[str]:
        return {*_segment_names(folder)} - {part.name for part in self._parts}

    def _remove_unnamed(self) -> None:
        """Remove segments that a merge replaced or a write that was cut off left; never before the first writing."""
        if self._folder is not None:
            self._log.settle()  # until then the log may name more than what is in memory
            for name in self._unnamed(self._folder):
                self._discard(name)


def _segment_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
