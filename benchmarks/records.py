"""Records: what a benchmark measured, with the facts of the machine, as a JSON file that `figures.py` reads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pairs import CLOCKS, Comparison

from diffretriever.machine import Machine, versions

#: Packages of the other sides, beside those that the package itself records.
_OTHERS = ("sentence-transformers", "pylate", "fast-plaid", "qdrant-edge-py", "torchao")


def row_of(comparison: Comparison) -> dict[str, object]:
    """Return a comparison as a record: ratios round by round, their median, and the seconds of both sides."""
    ratios = {clock: [round(r, 4) for r in comparison.ratios(clock)] for clock in CLOCKS}
    return {
        "name": comparison.name,
        "ratio": {clock: round(comparison.median(clock), 4) for clock in CLOCKS},
        "rounds": ratios,
        "ours": [asdict(t) for t in comparison.ours],
        "other": [asdict(t) for t in comparison.other],
        "load": comparison.load,
    }


def write_record(path: Path | None, rows: Sequence[Mapping[str, object]], **protocol: object) -> None:
    """Write rows and what they were measured on; nothing where no path is given.

    Args:
        path: the file; its folder is made.
        rows: the measurements.
        protocol: what else decides the numbers, such as threads and seed.
    """
    if path is None:
        return
    packages = versions()
    for name in _OTHERS:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    about = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "machine": asdict(Machine.here()),
        "versions": packages,
        **protocol,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
