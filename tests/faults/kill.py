"""Kill a process that writes to an index, again and again, and look what is left.

    python -m tests.faults.kill --kills 200 --backend edge --seed 0

Every round forks a writer from this process, which has imported everything, kills it with SIGKILL at a random moment
(while it opens, adds, updates, deletes, reorganises, checks, closes or takes a snapshot), opens the index in another
fork and compares it with the writes that were acknowledged. The same index goes from round to round.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from diffretriever.corpus import Passage
from diffretriever.index import Index, edge, exact  # noqa: F401  (imported once here and not in every fork)
from tests.faults.inspection import examine, make_encoder
from tests.faults.model import Model, Operation
from tests.faults.writer import Journal, write_forever

_PATIENCE = 120.0


@dataclass
class Summary:
    """Figures of a run; `violations` is empty when the index kept its promises."""

    backend: str
    seed: int
    kills: int = 0
    kills_inside: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    passages_acknowledged: int = 0
    searches: int = 0
    snapshots: int = 0
    violations: list[str] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(v.split(":")[0] == kind for v in self.violations)


@dataclass
class _Round:
    """What the journal of one writer says."""

    operations: list[tuple[Operation, bool]]
    cut_short: str
    failure: str | None


def run(kills: int, backend: str, seed: int, root: Path, *, least: int = 0, searches: int = 3) -> Summary:
    """Kill `kills` times, each writer after `least` operations or more; returns what was found."""
    model, summary = Model(), Summary(backend, seed)
    folder = root / "index"
    _forked(lambda: Index.create(folder, make_encoder(), backend=backend).close(), root / "created")  # type: ignore[arg-type]
    snapshots: dict[str, tuple[Model, bool]] = {}
    for number in range(kills):
        # One per round: how much is drawn in a round depends on how far its writer came before it was killed.
        rng = random.Random(f"{seed} {number}")
        journal = root / "journal"
        journal.unlink(missing_ok=True)
        _kill_a_writer(folder, journal, rng, number, least)
        summary.kills += 1
        written = _read(journal)
        if written.failure:
            summary.violations.append(f"failed: kill {number}: {written.failure}")
        summary.kills_inside[written.cut_short] += 1
        for operation, acknowledged in written.operations:
            if operation.kind == "snapshot":
                snapshots[operation.folder] = (model.copy(), acknowledged)
            model.apply(operation, acknowledged=acknowledged)
            if acknowledged:
                summary.operations[operation.kind] += 1
                summary.passages_acknowledged += len(operation.effects())
        # Now and then the next writer, and not an inspection, is the first to see what the kill left.
        if number == kills - 1 or rng.random() < 0.8:
            _inspect(root, folder, model, summary, rng.random(), searches, f"kill {number}")
            for name, (state, acknowledged) in snapshots.items():
                _inspect_snapshot(root, name, state, acknowledged, summary, rng.random())
            snapshots.clear()
            for left in root.glob("snapshot-*"):
                shutil.rmtree(left)
    return summary


def _kill_a_writer(folder: Path, journal: Path, rng: random.Random, number: int, least: int) -> None:
    receiver, sender = os.pipe()
    seed, lines = rng.random(), rng.choice([1, rng.randint(1, 12), rng.randint(1, 40)])
    # The journal opens with one line, and an operation has two.
    lines += 2 * least
    pid = os.fork()
    if pid == 0:
        os.close(receiver)
        try:
            notes = Journal(journal, sender)
            try:
                write_forever(folder, notes, random.Random(seed))
            except BaseException as error:
                notes.note(failure=f"{type(error).__name__}: {error}")
        finally:
            os._exit(1)
    os.close(sender)
    deadline = time.monotonic() + _PATIENCE
    while lines > 0 and select.select([receiver], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (got := os.read(receiver, lines)):
            break
        lines -= len(got)
    # Most operations take a millisecond or two, reorganising some dozens.
    time.sleep(rng.choice([rng.uniform(0, 0.003), rng.uniform(0, 0.03), rng.uniform(0, 0.15)]))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(receiver)
    if lines > 0 and time.monotonic() > deadline:
        raise TimeoutError(f"the writer of round {number} did nothing for {_PATIENCE} s")


def _read(journal: Path) -> _Round:
    """Return the operations of a journal with whether each returned; a torn last line was never acted upon."""
    begun: dict[int, Operation] = {}
    done: set[int] = set()
    failure = None
    raw = journal.read_bytes() if journal.exists() else b""
    for line in raw[: raw.rfind(b"\n") + 1].splitlines():
        entry = json.loads(line)
        if "begin" in entry:
            begun[entry["begin"]] = Operation.from_json(entry["operation"])
        elif "done" in entry:
            done.add(entry["done"])
        failure = entry.get("failure", failure)
    last = max(begun, default=0)
    cut_short = "open" if not begun else "between" if last in done else begun[last].kind
    return _Round([(operation, n in done) for n, operation in begun.items()], cut_short, failure)


def _inspect(root: Path, folder: Path, model: Model, summary: Summary, seed: float, searches: int, where: str) -> None:
    def look() -> None:
        held, compared, wrong = examine(folder, random.Random(seed), searches=searches)
        result = {"held": [asdict(p) for p in held.values()], "compared": compared, "wrong": wrong}
        (root / "seen").write_text(json.dumps(result), encoding="utf-8")

    status = _forked(look, root / "trace")
    if status:
        summary.violations.append(f"unusable: {where}: the inspection ended with {status}")
        return
    result = json.loads((root / "seen").read_text(encoding="utf-8"))
    held = {p["passage_id"]: Passage(**p) for p in result["held"]}
    unusable = any(w.startswith("unusable") for w in result["wrong"])
    wrong = result["wrong"] + ([] if unusable else model.observe(held))
    summary.searches += result["compared"]
    summary.violations += [f"{w} ({where})" for w in wrong]


def _inspect_snapshot(root: Path, name: str, state: Model, acknowledged: bool, summary: Summary, seed: float) -> None:
    """A snapshot that was taken is whole; one that was cut short is whole, or absent, or refused when opened."""
    folder = root / name
    found = Summary(summary.backend, summary.seed)
    if folder.exists() or acknowledged:
        _inspect(root, folder, state, found, seed, 1, name)
        summary.searches += found.searches
        summary.snapshots += acknowledged
        refused = not acknowledged and all(v.startswith("unusable: snapshot") for v in found.violations)
        summary.violations += [] if refused else found.violations


def _forked(work: object, trace: Path) -> str | None:
    """Run something in a fork; returns how it ended when that was not well."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            with trace.open("w") as file:
                os.dup2(file.fileno(), 2)
            work()  # type: ignore[operator]
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return f"code {code}: {trace.read_text(errors='replace')[-2000:]}" if code else None


def main() -> int:
    """Run from the command line; the exit code is 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--backend", choices=["edge", "exact"], default="edge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=int, default=0, help="operations that return before each kill, at least")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # threads would not survive a fork
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        summary = run(options.kills, options.backend, options.seed, Path(root), least=options.least)
    if options.json:
        print(json.dumps(vars(summary)))
        return int(bool(summary.violations))
    print(
        f"backend {summary.backend}, seed {summary.seed}: {summary.kills} kills in {time.monotonic() - started:.0f} s"
    )
    print(f"  struck inside: {dict(summary.kills_inside.most_common())}")
    print(f"  operations acknowledged: {sum(summary.operations.values())} {dict(summary.operations.most_common())}")
    print(f"  passage writes acknowledged: {summary.passages_acknowledged}")
    for kind in ("lost", "resurrected", "changed", "torn", "unusable", "failed", "check"):
        print(f"  {kind}: {summary.count(kind)}")
    print(f"  snapshots acknowledged and verified: {summary.snapshots}")
    print(f"  searches compared: {summary.searches}, wrong: {summary.count('wrong search')}")
    for violation in summary.violations[:20]:
        print(f"  ! {violation}")
    return int(bool(summary.violations))


if __name__ == "__main__":
    sys.exit(main())
