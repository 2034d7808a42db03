"""SweepResults: the grid of (K_q, K_p), what was chosen, how it transfers, and the headroom per query, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffretriever.evaluation.records import incomplete, read_record, write_record
from diffretriever.machine import Machine
from diffretriever.studies.latency_results import check_schema
from diffretriever.studies.oracle import Headroom

SWEEP_FILE = "sweep.json"
#: Version of the file's layout.
SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One pair on one collection.

    Attributes:
        query_slots: K_q.
        passage_slots: K_p.
        values: mode ("dense", "sparse" or "hybrid") -> mean of the measure.
        results: folder of its results.json, relative to the sweep's.
    """

    query_slots: int
    passage_slots: int
    values: dict[str, float]
    results: str

    @property
    def pair(self) -> tuple[int, int]:
        """(K_q, K_p)."""
        return self.query_slots, self.passage_slots


@dataclass(frozen=True)
class Grid:
    """All pairs on one collection.

    Attributes:
        collection: name of the collection.
        split: split of its judgements.
        queries: number of queries.
        cells: the pairs.
    """

    collection: str
    split: str
    queries: int
    cells: tuple[Cell, ...]

    def best(self, mode: str) -> Cell:
        """Return the pair with the greatest value; of equal ones that with the fewest vectors."""
        return max(self.cells, key=lambda c: (c.values[mode], -c.query_slots * c.passage_slots, -c.passage_slots))

    def at(self, pair: tuple[int, int]) -> Cell | None:
        """Return the cell of a pair, None if it is not in the grid."""
        return next((cell for cell in self.cells if cell.pair == pair), None)


@dataclass(frozen=True)
class Transfer:
    """A pair chosen on the training split, on another collection.

    Attributes:
        mode: the mode it was chosen by and is judged in.
        collection: the collection.
        split: its split.
        chosen: (K_q, K_p) chosen on the training split, as a list of two.
        chosen_value: its value here.
        best: the pair that is best here.
        best_value: its value.
        default: the model's own pair.
        default_value: its value; None if it is not in the grid.
        rank: rank of the chosen pair among all pairs here, from 1.
    """

    mode: str
    collection: str
    split: str
    chosen: tuple[int, ...]
    chosen_value: float
    best: tuple[int, ...]
    best_value: float
    default: tuple[int, ...]
    default_value: float | None
    rank: int


@dataclass(frozen=True)
class OracleRow:
    """The headroom per query in one mode on the training split.

    Attributes:
        mode: the mode.
        choice: "pair" (K_q and K_p per query) or "query side" (K_q per query, one index with the chosen K_p).
        control: what the variants of the control vary in.
        headroom: the oracle, its control and the difference.
    """

    mode: str
    choice: str
    control: str
    headroom: Headroom


@dataclass(frozen=True)
class SweepResults:
    """Everything that one sweep found.

    Attributes:
        schema: version of this layout, `SCHEMA`.
        created: UTC time, ISO 8601.
        command: the command line.
        seed: seed of every random choice.
        label: name of the model in tables.
        measure: the measure that pairs are chosen by.
        modes: the modes.
        default: the model's own pair.
        chosen: mode -> the pair chosen on the first grid.
        grids: the training split, then the collections of the transfer.
        transfers: one entry per mode and collection of the transfer.
        oracles: one entry per mode, choice and control.
        machine: what it ran on.
        versions: package -> version.
    """

    schema: int
    created: str
    command: str
    seed: int
    label: str
    measure: str
    modes: tuple[str, ...]
    default: tuple[int, ...]
    chosen: dict[str, tuple[int, ...]]
    grids: tuple[Grid, ...]
    transfers: tuple[Transfer, ...]
    oracles: tuple[OracleRow, ...]
    machine: Machine
    versions: dict[str, str]

    def write(self, folder: Path) -> Path:
        """Write `sweep.json` into a folder, in one step, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        write_record(self, folder / SWEEP_FILE)
        return folder / SWEEP_FILE

    @staticmethod
    def read(path: Path) -> SweepResults:
        """Return what `write` wrote.

        Raises:
            CorpusError: the file is damaged or incomplete, or of another version.
        """
        check_schema(path, SCHEMA, "diffretriever sweep")
        found = read_record(SweepResults, path)
        if (what := found.lacks()) is not None:
            raise incomplete(path, what, "diffretriever sweep")
        return found

    def lacks(self) -> str | None:
        """Return what does not fit together, None where everything does."""
        if not self.grids or not all(grid.cells for grid in self.grids):
            return "grids is empty, or one of them has no pair"
        for mode in self.modes:
            if mode not in self.chosen:
                return f"chosen has no {mode!r}, which modes names"
            for number, grid in enumerate(self.grids):
                for cell in grid.cells:
                    if mode not in cell.values:
                        return f"grids[{number}], pair {cell.pair}: values has no {mode!r}, which modes names"
        pairs = [self.default, *self.chosen.values()]
        pairs += [pair for t in self.transfers for pair in (t.chosen, t.best, t.default)]
        if wrong := [pair for pair in pairs if len(pair) != 2]:
            return f"{list(wrong[0])} is no pair of K_q and K_p"
        return None
