"""The picture and the tables of docs/performance.md, from the JSON files that the other benchmarks wrote.

python benchmarks/figures.py docs/results --figure docs/performance.svg > tables.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from pairs import CLOCKS

#: Goals by the beginning of a row's name.
GOALS = {"naive, mini": 3.0, "naive, tiny": 8.0, "naive, small": 8.0, "MiniLM": 1.0}
SHARE = 0.7
_BLUE, _RED = "#2b6cb0", "#c53030"


def read_rows(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of all files of a folder, and what each file says about its run."""
    rows: list[dict[str, Any]] = []
    about: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "rows" in record and "about" in record:
            rows += record["rows"]
            about.append({"file": path.name, **record["about"]})
    return rows, about


def goal_of(name: str) -> float | None:
    """Return the goal of a comparison, None where there is none."""
    if name.startswith("MaxSim"):
        return SHARE if "1 queries" not in name else None
    return next((goal for start, goal in GOALS.items() if name.startswith(start)), None)


def tables(rows: Sequence[dict[str, Any]], about: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of one table of ratios, one of memory, one of latencies, and one line per run."""
    lines = ["| comparison | CPU time, median (min to max) | wall time, median (min to max) | rounds | goal | load |"]
    lines.append("|---|---|---|---|---|---|")
    for row in (r for r in rows if "ratio" in r):
        shown = [
            f"{row['ratio'][clock]:.2f} ({min(row['rounds'][clock]):.2f} to {max(row['rounds'][clock]):.2f})"
            for clock in CLOCKS
        ]
        goal, load = goal_of(row["name"]), " to ".join(f"{value:.0f}" for value in row["load"])
        wanted = "" if goal is None else f"{goal:g}"
        lines.append(f"| {row['name']} | {shown[0]} | {shown[1]} | {len(row['ours'])} | {wanted} | {load} |")
    lines += ["", "| extra memory | ours, MB | naive, MB | share | of a second call |", "|---|---|---|---|---|"]
    for row in (r for r in rows if "ours MB" in r):
        name = row["name"].removeprefix("memory, ")
        again = row["again MB"][0] / row["again MB"][1]
        lines.append(f"| {name} | {row['ours MB']:.0f} | {row['other MB']:.0f} | {row['share']:.2f} | {again:.2f} |")
    lines += ["", "| embedded engine | p50, ms | p95, ms | CPU, ms | requests |", "|---|---|---|---|---|"]
    for row in (r for r in rows if "p50 ms" in r):
        values = " | ".join(f"{row[key]:.1f}" for key in ("p50 ms", "p95 ms", "cpu ms", "requests"))
        lines.append(f"| {row['name']} | {values} |")
    lines.append("")
    for run in about:
        machine, versions = run["machine"], run["versions"]
        packages = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(
            f"* {run['file']}: `{run['command']}`, {run['created']}, {machine['processor']}, {machine['cores']} cores, "
            f"{run.get('threads', machine['threads'])} threads, load {machine['load']}; {packages}"
        )
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw medians with their ranges beside the goals."""
    mpl.use("svg")
    # The same numbers give the same file.
    mpl.rcParams.update({"svg.hashsalt": "diffretriever", "font.size": 9})
    import matplotlib.pyplot as plt

    compared = [row for row in rows if "ratio" in row]
    speed = [row for row in compared if not row["name"].startswith("MaxSim")]
    shares = [row for row in compared if row["name"].startswith("MaxSim")]
    panels = [p for p in ((speed, "times as fast", True), (shares, "share of the matrix product rate", False)) if p[0]]
    heights = [len(found) for found, _, _ in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 0.33 * sum(heights) + 1.4), height_ratios=heights, squeeze=False
    )
    for (found, label, logarithmic), axis in zip(panels, axes[:, 0], strict=True):
        _bars(axis, found)
        axis.set_xlabel(f"{label} (CPU time); red: goal")
        if logarithmic:
            axis.set_xscale("log")
            axis.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
            axis.minorticks_off()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(axis: Any, rows: Sequence[dict[str, Any]]) -> None:  # noqa: ANN401  (matplotlib has no types)
    for place, row in enumerate(reversed(rows)):
        median, rounds = row["ratio"]["cpu"], row["rounds"]["cpu"]
        whiskers = [[median - min(rounds)], [max(rounds) - median]]
        axis.barh(place, median, color=_BLUE, height=0.6, xerr=whiskers, ecolor="black", capsize=2)
        if (goal := goal_of(row["name"])) is not None:
            axis.plot([goal, goal], [place - 0.4, place + 0.4], color=_RED, linewidth=2)
    names = [row["name"].replace(" by sentence-transformers", "").replace(" on disk, products in", ",") for row in rows]
    axis.set_yticks(range(len(rows)), names[::-1])
    axis.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", type=Path, help="SVG file to write")
    options = parser.parse_args(arguments)
    rows, about = read_rows(options.folder)
    if not rows:
        raise SystemExit(f"{options.folder} holds no results; run the other benchmarks with --out there first")
    print("\n".join(tables(rows, about)))
    if options.figure is not None:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
