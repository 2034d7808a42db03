r"""The paper's claim at a small scale: DiffEmbed, DiffRetriever with K = 1 and with (4, 16), matched in all else.

    diffretriever adapt minilm FOLDER/*.parquet --out build/adapted --steps 360 --lr 5e-4
    python benchmarks/matched.py --base build/adapted/model --data FOLDER --out build/matched \
        --collections scifact PATH/cranfield

Each system is trained by recipes/matched.yaml with three seeds, from the same weights, with the same rows, negatives,
temperature, schedule and steps (the draw of a batch hangs on the seed and the step alone), and evaluated with its dense
vectors: the mean of a DiffEmbed, the one slot of K = 1, MaxSim of (4, 16) and, from the same model, its slots' mean.
Written are OUT/matched.json and OUT/matched.md: mean and standard deviation over seeds, and the paired randomisation
test over the queries of each collection, a query's value being its mean over seeds. What is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from diffretriever.evaluation.measures import Evaluation, MeasureValue
from diffretriever.evaluation.significance import Pair, compare
from diffretriever.json_files import write_json
from diffretriever.machine import versions
from diffretriever.training.recipes import read_recipe
from diffretriever.training.run import train

MEASURE = "nDCG@10"
RECIPE = Path(__file__).parents[1] / "recipes" / "matched.yaml"
_NO_SLOTS = (
    "model.slot_embeddings=false",
    "model.slot_positions=null",
    "model.query_slots=null",
    "model.passage_slots=null",
)
#: Name -> what the recipe is overridden with.
SYSTEMS = {
    "diffembed": ("model.system=diffembed", *_NO_SLOTS),
    "k1": ("model.query_slots=1", "model.passage_slots=1"),
    "k4-16": (),
}
#: What is compared: system and mode of search.
ROWS = {
    "DiffEmbed, mean of tokens": ("diffembed", "single"),
    "DiffRetriever, K = 1": ("k1", "single"),
    "DiffRetriever (4, 16), mean of slots": ("k4-16", "single"),
    "DiffRetriever (4, 16), MaxSim": ("k4-16", "multi"),
}
Values = dict[str, dict[str, dict[str, float]]]


def main() -> None:
    """Train, evaluate and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="minilm", help="the weights that all start from")
    parser.add_argument("--data", required=True, help="folder of the training files that the recipe names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--collections", nargs="+", default=["scifact"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all systems alike")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name, own in SYSTEMS.items():
            label = f"{name}-seed{seed}"
            common = [f"model.base={arguments.base}", f"data.folder={arguments.data}", f"seed={seed}", *arguments.set]
            settings = read_recipe(RECIPE, [f"output={arguments.out / label}", *common, *own])
            if not (arguments.out / label / "model" / "model.safetensors").is_file():
                print(label, flush=True)
                train(settings)
            _evaluate(arguments.out, label, "single,multi" if name == "k4-16" else "single", arguments.collections)
    values = {row: _values(arguments.out, *which, arguments.seeds) for row, which in ROWS.items()}
    pairs = {task: _pairs(values, task) for task in next(iter(values.values()))}
    found = {
        "seeds": arguments.seeds,
        "overrides": arguments.set,
        "base": arguments.base,
        "versions": versions(),
        "rows": {row: {task: _means(by_seed, task) for task in by_seed} for row, by_seed in values.items()},
        "pairs": {task: [asdict(pair) for pair in of_task] for task, of_task in pairs.items()},
    }
    write_json(arguments.out / "matched.json", found)
    text = "\n".join((_heading(arguments.base, arguments.seeds), _table(values), _pair_table(pairs)))
    (arguments.out / "matched.md").write_text(text, encoding="utf-8")
    print(text)


def _heading(base: str, seeds: Sequence[int]) -> str:
    """Return what is compared, in words, from the recipe."""
    recipe, named, found = read_recipe(RECIPE), "/".join(Path(base).parts[-2:]), versions()
    steps, batch = recipe.optimisation.steps, recipe.optimisation.batch
    return (
        "## Matched comparison\n\n"
        f"`recipes/matched.yaml` from {named}, seeds {', '.join(map(str, seeds))}: {steps} steps of {batch} pairs, "
        f"contrastive loss alone, the same rows, negatives, temperature and schedule for all. {MEASURE} of the dense "
        f"vectors, passages cut at {recipe.model.max_passage_length} tokens: mean over seeds (standard deviation). "
        f"Made by `python benchmarks/matched.py`; torch {found['torch']}, transformers {found['transformers']}.\n"
    )


def _evaluate(out: Path, label: str, modes: str, collections: Sequence[str]) -> None:
    command = [sys.executable, "-m", "diffretriever.cli.main", "evaluate", str(out / label / "model"), "--label", label]
    command += ["--modes", modes, "--measures", MEASURE, "--repeats", "highest", "--out", str(out / "results")]
    command += [f"--collection={c}" for c in collections]
    subprocess.run(command, check=True)  # noqa: S603  (this package's own command)


def _values(out: Path, system: str, mode: str, seeds: Sequence[int]) -> Values:
    """Return collection -> seed -> query -> value."""
    values: Values = {}
    for seed in seeds:
        for path in sorted((out / "results").glob(f"*/{system}-seed{seed}/results.json")):
            results = json.loads(path.read_text(encoding="utf-8"))
            found = next(m for m in results["modes"] if m["mode"] == mode)
            values.setdefault(path.parts[-3], {})[str(seed)] = found["per_query"][MEASURE]
    return values


def _means(values: Values, task: str) -> list[float]:
    """Return the mean over queries for every seed."""
    return [statistics.fmean(queries.values()) for queries in values[task].values()]


def _pairs(values: dict[str, Values], task: str) -> list[Pair]:
    """Return every pair of rows on one collection, the better first; p-values are corrected over these pairs."""
    evaluations = {}
    for row, found in values.items():
        queries = _by_query(found[task])
        mean = MeasureValue(MEASURE, statistics.fmean(queries.values()))
        evaluations[row] = Evaluation(row, len(queries), (mean,), {MEASURE: queries})
    return compare(evaluations, [MEASURE])


def _by_query(seeds: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return each query's mean over seeds."""
    first = next(iter(seeds.values()))
    return {query: statistics.fmean(values[query] for values in seeds.values()) for query in first}


def _table(values: dict[str, Values]) -> str:
    tasks = list(next(iter(values.values())))
    lines = ["| | " + " | ".join(tasks) + " | mean |"]
    lines.append("|---|" + "---|" * (len(tasks) + 1))
    for row, found in values.items():
        columns = [_means(found, task) for task in tasks]
        columns.append([statistics.fmean(seed) for seed in zip(*columns, strict=True)])
        lines.append(f"| {row} | " + " | ".join(_spread(column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _spread(seeds: Sequence[float]) -> str:
    return f"{statistics.fmean(seeds):.3f} ({statistics.stdev(seeds) if len(seeds) > 1 else 0.0:.3f})"


def _pair_table(pairs: dict[str, list[Pair]]) -> str:
    lines = [
        "Differences, query by query; p of the paired randomisation test after Holm's correction by collection:",
        "",
        "| collection | better | worse | difference | p |",
        "|---|---|---|---|---|",
    ]
    for task, of_task in pairs.items():
        for pair in of_task:
            numbers = f"{pair.difference:+.3f} | {pair.randomisation_holm:.4f}"
            lines.append(f"| {task} | {pair.first} | {pair.second} | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
