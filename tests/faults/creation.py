"""The creation of an index, killed before each of its steps, and what the same command makes of what is left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy  # noqa: F401  (imported once here and not in every fork, like the engines)

from diffretriever.cli.building import Build, begin, refuse_finished
from diffretriever.corpus import Passage
from diffretriever.index import Index, Storage
from diffretriever.index.edge import store as edge  # noqa: F401
from diffretriever.index.exact import store as exact  # noqa: F401
from diffretriever.index.manifest import Backend
from tests.index.hashing import VOCABULARY, HashEncoder

#: What changes a folder, or reads it, as Python tells of it beforehand.
_STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
_STORAGE = Storage(pca=4)
_PASSAGES = [Passage(f"p{i}", f"flow word{i % 3} number{i}") for i in range(12)]


def kill_at_every_step(root: Path, backend: Backend) -> Iterator[str]:
    """Yield for each step how the command ended that was given again after a kill there: "as if never killed"."""
    whole = root / "whole"
    assert _forked(lambda: _finish(whole, backend)) == 0
    step, code = 0, 9
    while code == 9:
        step += 1
        folder = root / str(step)
        code = _forked(lambda folder=folder, step=step: _create(folder, backend, step))  # type: ignore[misc]
        again = _forked(lambda folder=folder: _finish(folder, backend))  # type: ignore[misc]
        same = again == 0 and _scores(folder) == _scores(whole)
        yield "as if never killed" if code in (0, 9) and same else f"before step {step}: {code}, then {again}"


def _begin(folder: Path, backend: Backend) -> Index:
    encoder = HashEncoder(dim=8, term_idf=np.linspace(0.5, 8, VOCABULARY, dtype=np.float32))
    refuse_finished(folder)
    return begin(
        folder, Build.of("corpus", encoder), encoder, backend, _STORAGE, "collection", overwrite=False, durable=False,
        sample=lambda: encoder.encode_passages(_PASSAGES),
    )  # fmt: skip


def _create(folder: Path, backend: Backend, step: int) -> None:
    left = step

    def count(event: str, given: tuple[object, ...]) -> None:
        nonlocal left
        if event in _STEPS and any(str(folder) in str(argument) for argument in given):
            left -= 1
            if left == 0:
                os._exit(9)

    sys.addaudithook(count)
    _begin(folder, backend)


def _finish(folder: Path, backend: Backend) -> None:
    with _begin(folder, backend) as index:
        index.add(_PASSAGES)
        found = {hit.passage_id: hit.score for hit in index.search("flow word1 number7", 12, "sparse")}
    _file_of(folder).write_text(json.dumps(found))


def _scores(folder: Path) -> object:
    return json.loads(_file_of(folder).read_text())


def _file_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _forked(work: Callable[[], None]) -> int:
    """Return the exit code of a fork that does something; only a fork may open an engine, whose threads stay behind."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
