"""The sweep: every pair (K_q, K_p) of a grid, encoded for real, judged on a training split and elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffretriever.evaluation.collections import Collection
from diffretriever.evaluation.encodings import Encodings
from diffretriever.evaluation.experiment import Experiment
from diffretriever.evaluation.plan import Plan
from diffretriever.evaluation.results import RESULTS_FILE, ModeResult, Results
from diffretriever.studies.oracle import headroom
from diffretriever.studies.sweep_results import Cell, Grid, OracleRow, Transfer
from diffretriever.studies.variants import Variant, VariantFactory, passage_key
from diffretriever.studies.wordings import wordings

Pair = tuple[int, int]
#: What a mode of the sweep is called in an evaluation, for pairs with several vectors and for (1, 1).
_RANKINGS: Mapping[str, tuple[str, str]] = {
    "dense": ("multi", "single"),
    "sparse": ("sparse", "sparse"),
    "hybrid": ("hybrid", "hybrid"),
}
MODES = tuple(_RANKINGS)
CONTROLS = ("noise", "prompts")


@dataclass(frozen=True)
class SweepPlan:
    """What is swept.

    Attributes:
        counts: values of K_q and of K_p.
        modes: of "dense" (MaxSim), "sparse" and "hybrid".
        measure: name of the measure that pairs are chosen by.
        depth: length of a ranking at most.
        alpha: weight of the dense side in hybrid rankings.
        noise: noise of the control, in units of the deviation of the input embeddings.
        seed: seed of every random choice.
    """

    counts: tuple[int, ...]
    modes: tuple[str, ...] = MODES
    measure: str = "nDCG@10"
    depth: int = 1000
    alpha: float = 0.5
    noise: float = 2.0
    seed: int = 0

    @property
    def pairs(self) -> list[Pair]:
        """Every (K_q, K_p), passages changing first."""
        return [(q, p) for q in self.counts for p in self.counts]

    def of(self, variant: Variant) -> Plan:
        """Return what an evaluation of a variant is asked for."""
        several = variant.own.query_slots > 1 or variant.own.passage_slots > 1
        names = tuple(_RANKINGS[mode][0 if several else 1] for mode in self.modes)
        return Plan(modes=names, depth=self.depth, measures=(self.measure,), alpha=self.alpha, seed=self.seed)

    def judged(self, results: Results) -> dict[str, ModeResult]:
        """Return the ranking that each mode stands for."""
        there = {found.mode: found for found in results.modes}
        return {mode: next(there[name] for name in _RANKINGS[mode] if name in there) for mode in self.modes}

    def values(self, results: Results, mode: str) -> dict[str, float]:
        """Return query id -> value."""
        return self.judged(results)[mode].per_query[self.measure]


class VariantExperiment(Experiment):
    """An experiment whose passages are encoded once for all variants that encode them alike."""

    @cached_property
    def encodings(self) -> Encodings | None:
        """The encodings of the passages, found by what encodes passages alone."""
        if not isinstance(self.system, Variant):
            return None
        return Encodings.open(self.encodings_root, passage_key(self.system), self.pool)


@dataclass(frozen=True)
class Sweep:
    """A sweep of one model.

    Attributes:
        label: name of the model in tables and folders.
        name: what the model was opened by.
        factory: makes the variants.
        plan: what is swept.
        out: folder of all results; the encodings are in it.
        command: the command line, for the stamps.
        progress: whether to show progress bars on a terminal.
    """

    label: str
    name: str
    factory: VariantFactory
    plan: SweepPlan
    out: Path
    command: str = ""
    progress: bool = False

    def grid_variants(self) -> list[Variant]:
        """Return the variant of every pair."""
        return [self.factory.pair(*pair) for pair in self.plan.pairs]

    def control_variants(self, control: str, pair: Pair) -> list[Variant]:
        """Return as many variants of one pair as the grid has, sorted alike: passages changing first."""
        count = len(self.plan.counts)
        if control == "prompts":
            known = wordings(self.factory.prompt, count)
            return [self.factory.worded(pair, q, p) for q in known for p in known]
        # Seed 0 is left out: a variant without noise would be among them only by name.
        noises = [(self.plan.seed * 1000 + number, self.plan.noise) for number in range(1, count + 1)]
        return [self.factory.noisy(pair, q, p) for q in noises for p in noises]

    def experiment(self, variant: Variant, collection: Collection) -> VariantExperiment:
        """Return the evaluation of a variant."""
        return VariantExperiment(
            label=f"{self.label}-{variant.name}",
            name=self.name,
            system=variant,
            collection=collection,
            plan=self.plan.of(variant),
            encodings_root=self.out / "encodings",
            device=variant.queries.backbone.device,
            progress=self.progress,
        )

    def judge(
        self, variants: Iterable[Variant], collection: Collection, advance: Callable[[int], None]
    ) -> list[tuple[str, Results]]:
        """Return the folder, relative to `out`, and the results of each variant; those that are there are kept."""
        found = []
        facts = None
        for variant in variants:
            experiment = self.experiment(variant, collection)
            if facts is not None:
                experiment.corpus = facts  # read once for all variants
            facts = experiment.corpus
            folder = self.out / experiment.task_name / experiment.label
            there = Results.read(folder) if (folder / RESULTS_FILE).is_file() else None
            if there is None or not there.question.is_that_of(experiment.question):
                there = experiment.run(folder, command=self.command)
            found.append((folder.relative_to(self.out).as_posix(), there))
            advance(1)
        return found

    def grid(self, collection: Collection, judged: Sequence[tuple[str, Results]]) -> Grid:
        """Return the grid of a collection from its judged pairs."""
        cells = []
        for pair, (folder, results) in zip(self.plan.pairs, judged, strict=True):
            values = {mode: own.measures[self.plan.measure] for mode, own in self.plan.judged(results).items()}
            cells.append(Cell(*pair, values, folder))
        return Grid(collection.name, collection.split, len(collection.queries), tuple(cells))


def transfers(first: Grid, others: Sequence[Grid], modes: Sequence[str], default: Pair) -> list[Transfer]:
    """Return how the pairs chosen on the first grid do on the other ones."""
    found = []
    for grid in others:
        for mode in modes:
            chosen, best, own = first.best(mode).pair, grid.best(mode), grid.at(default)
            here = grid.at(chosen)
            value = here.values[mode] if here is not None else float("nan")
            found.append(
                Transfer(
                    mode=mode,
                    collection=grid.collection,
                    split=grid.split,
                    chosen=chosen,
                    chosen_value=value,
                    best=best.pair,
                    best_value=best.values[mode],
                    default=default,
                    default_value=None if own is None else own.values[mode],
                    rank=1 + sum(cell.values[mode] > value for cell in grid.cells),
                )
            )
    return found


def oracle_rows(
    plan: SweepPlan, mode: str, chosen: Pair, grid: Sequence[Results], control: Sequence[Results], control_name: str
) -> list[OracleRow]:
    """Return the headroom of a choice of the pair, and of K_q alone, per query.

    Args:
        plan: the sweep.
        mode: the mode.
        chosen: the pair chosen in that mode.
        grid: results of every pair, in the order of `plan.pairs`.
        control: results of as many variants of the chosen pair, in the same order.
        control_name: what these vary in.
    """
    count = len(plan.counts)
    pairs = {f"({q}, {p})": plan.values(r, mode) for (q, p), r in zip(plan.pairs, grid, strict=True)}
    noisy = {r.system.label: plan.values(r, mode) for r in control}
    column = plan.counts.index(chosen[1])
    sides = {name: own for name, own in pairs.items() if name in {f"({q}, {chosen[1]})" for q in plan.counts}}
    noisy_sides = dict(list(noisy.items())[column::count])
    rows = (("pair", pairs, noisy), ("query side", sides, noisy_sides))
    return [
        OracleRow(mode, choice, control_name, headroom(k, n, name="K", control_name=control_name, seed=plan.seed))
        for choice, k, n in rows
    ]
