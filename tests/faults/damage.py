"""Damage done to the files of an index folder, one file at a time, and what opening and checking make of it.

    python -m tests.faults.damage --backend edge --flips 20

Each case runs in a fork of its own, since an engine may die of what it reads.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from diffretriever.corpus import Passage
from diffretriever.errors import DiffRetrieverError, IndexFormatError
from diffretriever.index import Index, edge, exact  # noqa: F401  (imported once here and not in every fork)
from tests.faults.inspection import held_passages, make_encoder, random_text, wrong_searches
from tests.faults.writer import make_small_steps

Damage = Callable[[Path, random.Random], None]
_PATIENCE = 120.0
#: How a case may end. "refused": opening or checking raises IndexFormatError. "found": check reports it. "intact":
#: every passage and search is right. "mended": after a repair the index opens, check finds nothing, and each passage
#: that is left has the vectors and terms of its own text. "given up": the engine died or hung on being told to open
#: what it had refused. The others are bugs: another error, with or without a name
#: of this package, a wrong answer that check does not report, a process that dies or hangs, code of the file that ran.
GOOD = ("refused", "found", "intact", "mended", "given up")


def build(folder: Path, backend: str) -> dict[str, Passage]:
    """Make a small index with everything in it: merged and recent writes, replacements, deletions, new metadata."""
    make_small_steps()
    rng = random.Random(7)
    with Index.create(folder, make_encoder(), backend=backend) as index:  # type: ignore[arg-type]
        for start in range(0, 60, 20):
            index.add([_passage(f"p{i}", rng) for i in range(start, start + 20)], words=1)
        index._store.maintain()
        index.add([_passage(f"p{i}", rng) for i in range(55, 65)], words=1)
        index.delete(["p3", "p30", "p58"])
        index.set_metadata({"p5": {"parity": 1}, "p60": {"parity": 0}})
        held, wrong = held_passages(index)
    assert not wrong
    return held


def _passage(passage_id: str, rng: random.Random) -> Passage:
    return Passage(passage_id, random_text(rng) + " w1", f"title {rng.random()}", {"parity": rng.randint(0, 1)})


def files_of(folder: Path) -> Iterator[Path]:
    """Yield every file of an index, as a path in the folder, but for the lock."""
    yield from sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def halve(path: Path, rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def shorten(path: Path, rng: random.Random) -> None:
    os.truncate(path, max(0, path.stat().st_size - 1))


def lengthen(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b"\x00garbage")


def zero(path: Path, rng: random.Random) -> None:
    size = path.stat().st_size
    path.write_bytes(b"")
    os.truncate(path, size)


def flip_bit(path: Path, rng: random.Random) -> None:
    """Flip one bit, mostly of a byte that is not 0: the engine's files are long and hold little."""
    raw = bytearray(path.read_bytes())
    used = [i for i in range(min(len(raw), 1 << 20)) if raw[i]]
    if not raw:
        return
    at = rng.choice(used) if used and rng.random() < 0.9 else rng.randrange(min(len(raw), 4096))
    raw[at] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


class _Code:
    """Pickled, this makes the folder "code ran" beside the index when it is unpickled."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.place,)


def replace_by_pickle(path: Path, rng: random.Random) -> None:
    path.write_bytes(pickle.dumps(_Code(str(_root_of(path) / CODE_RAN))))


def _root_of(path: Path) -> Path:
    return next(p for p in path.parents if p.name == COPY).parent


COPY, CODE_RAN = "copy", "code ran"
ONCE: tuple[Damage, ...] = (remove, empty, halve, shorten, lengthen, zero, replace_by_pickle)


def outcome(look: Callable[[], str]) -> str:
    """Do something with a damaged folder in a fork, and return in a word how that ended."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receiver)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.write(sender, _named(look).encode(errors="replace")[:4000])
        os._exit(0)
    os.close(sender)
    deadline = time.monotonic() + _PATIENCE
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(receiver)
            return "hangs"
        time.sleep(0.002)
    said = os.read(receiver, 4096).decode()
    os.close(receiver)
    return said or f"dies: {os.waitstatus_to_exitcode(ended[1])}"


def _named(look: Callable[[], str]) -> str:
    try:
        return look()
    except IndexFormatError as error:
        return f"refused: {error}"
    except DiffRetrieverError as error:
        return f"error: {type(error).__name__} {error}"
    except BaseException as error:
        return f"unnamed: {type(error).__name__} {error}"


def _open(folder: Path, expected: dict[str, Passage], rng: random.Random) -> str:
    index = Index.open(folder)
    if problems := index.check().problems:
        return f"found: {problems[0]}"
    try:
        held, wrong = held_passages(index)
    except IndexFormatError as error:
        return f"wrong: check found nothing, and yet {error}"
    if held != expected or wrong:
        return f"wrong: {len(held)} of {len(expected)} passages {(wrong or [''])[0]}"
    mistakes = wrong_searches(index, held, rng, 3)[1]
    return f"wrong: {mistakes[0]}" if mistakes else "intact"


def _repair(folder: Path, expected: dict[str, Passage], rng: random.Random) -> str:
    with Index.open(folder, salvage=True) as index:
        report = index.check(repair=True)
    with Index.open(folder) as index:
        if problems := index.check().problems:
            return f"not mended: {problems[0]}"
        held, wrong = held_passages(index)
        mistakes = wrong or wrong_searches(index, held, rng, 2)[1]
    if held != expected and not report.problems:
        return f"wrong: a repair found nothing and left {len(held)} of {len(expected)} passages"
    return f"wrong: {mistakes[0]}" if mistakes else f"mended: {len(held)} passages"


def survey(
    backend: str, root: Path, *, flips: int, sample: int | None = None, seed: int = 0
) -> dict[tuple[str, str], list[str]]:
    """Return the outcomes by file and damage, of all cases or of a random sample of them."""
    expected = build(root / "whole", backend)
    rng = random.Random(seed)
    cases = [(name, damage) for name in files_of(root / "whole") for damage in (*ONCE, *[flip_bit] * flips)]
    if sample is not None:
        cases = rng.sample(cases, min(sample, len(cases)))
    outcomes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, damage in cases:
        copy = root / COPY
        copy_sparse(root / "whole", copy)
        damage(copy / name, rng)
        seen = random.Random(rng.random())
        said = [outcome(partial(_open, copy, expected, seen))]
        if said[0].split(":")[0] in ("refused", "found"):
            mended = outcome(partial(_repair, copy, expected, seen))
            said.append(f"given up: {mended}" if mended.startswith(("dies", "hangs")) else mended)
        outcomes[str(name), damage.__name__] += ["code ran"] if (root / CODE_RAN).exists() else said
        shutil.rmtree(copy)
    return outcomes


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a folder; the engine reserves files of 32 MB that hold little."""
    for path in source.rglob("*"):
        new = target / path.relative_to(source)
        if path.is_dir():
            new.mkdir(parents=True, exist_ok=True)
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size
        with path.open("rb") as old, new.open("wb") as file:
            at = 0
            while at < size:
                try:
                    start = os.lseek(old.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                at = os.lseek(old.fileno(), start, os.SEEK_HOLE)
                old.seek(start)
                file.seek(start)
                file.write(old.read(at - start))
            file.truncate(size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["edge", "exact"], default="edge")
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--sample", type=int, help="only so many cases, chosen at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        outcomes = survey(options.backend, Path(root), flips=options.flips, sample=options.sample, seed=options.seed)
    total: Counter[str] = Counter()
    for (name, damage), said in outcomes.items():
        words = Counter(s.split(":")[0] for s in said)
        total += words
        bad = [s for s in said if s.split(":")[0] not in GOOD]
        print(f"{name} {damage}: {dict(words)}" + (f"   ! {bad[0][:200]}" if bad else ""))
    print(dict(total))
    return int(any(word not in GOOD for word in total))


if __name__ == "__main__":
    sys.exit(main())
