"""RunFolder: what a run leaves on the disk, and where it goes on after an interruption.

run.json             settings, versions, machine, digests of the data and of the base
log.jsonl            one line per step
checkpoint-STEP/     a model that `open_system` reads, and the state of the optimiser; the newest ones and the best
model/               the finished model
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from diffretriever.errors import CheckpointError
from diffretriever.folder_lock import FolderTakenError, sole_writer
from diffretriever.json_files import read_json_object, write_json
from diffretriever.machine import Machine, versions
from diffretriever.training.settings import TrainingSettings

_MARK = "complete"
_FACTS = "run.json"
_BASE = "base_fingerprint"
_PREFIX = "checkpoint-"
_NAME = re.compile(rf"{_PREFIX}([1-9][0-9]*)")
#: What may change between the parts of one run: folders move, and a run may be given to another machine.
_MOVABLE = ("output", "trainer")


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, where they would write the same checkpoints; the first process does it for all.

    Args:
        folder: the folder; made when it is missing.

    Raises:
        CheckpointError: another run is writing here.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # An exit stack, so that errors of the run itself are not taken for those of the lock.
    with ExitStack() as held:
        try:
            held.enter_context(sole_writer(folder))
        except FolderTakenError as error:
            raise CheckpointError(f"{error.owner} is training in {folder}; give another `output`") from None
        yield


def checkpoint_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of a run's checkpoints by step; others of a like name, `checkpoint-best`, are the user's."""
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob(f"{_PREFIX}*") if path.is_dir()]
    return {int(name[1]): path for name, path in named if name is not None}


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> Path:
        """The file with one line per step."""
        return self.path / "log.jsonl"

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        return self.path / "model"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.path / f"{_PREFIX}{step}"

    def mark_complete(self, step: int) -> None:
        """Note that a checkpoint is whole: a run goes on from no other."""
        (self.checkpoint(step) / _MARK).write_text("", encoding="utf-8")

    def newest(self) -> int | None:
        """Return the step of the newest whole checkpoint; None when there is none."""
        steps = self._steps()
        return steps[-1] if steps else None

    def prune(self, keep: int, best: str | None) -> None:
        """Remove all whole checkpoints but the newest `keep` and the best."""
        for step in self._steps()[:-keep]:
            if best is None or self.checkpoint(step).resolve() != Path(best).resolve():
                shutil.rmtree(self.checkpoint(step))

    def remove_broken(self) -> None:
        """Remove checkpoints that an interruption left unfinished.

        Raises:
            CheckpointError: they are not of a run of ours.
        """
        for folder in checkpoint_folders(self.path).values():
            if not (folder / _MARK).is_file():
                if not (self.path / _FACTS).is_file():
                    raise CheckpointError(f"{folder} is a checkpoint of another program; give a new `output`")
                shutil.rmtree(folder)

    def describe(
        self, settings: TrainingSettings, digests: Mapping[str, str], base: str, steps: int
    ) -> dict[str, object]:
        """Write and return the facts of the run.

        Args:
            settings: the run.
            digests: of its files of texts, by path.
            base: fingerprint of the model it starts from; the same path may lead to another one later.
            steps: optimiser steps.

        Raises:
            CheckpointError: the folder belongs to a run with other settings or data, or from another base.
        """
        about: dict[str, object] = {
            "settings": json.loads(settings.to_json()),
            "steps": steps,
            "data_sha256": dict(digests),
            _BASE: base,
            "versions": versions(),
            "machine": asdict(Machine.here()),
        }
        path = self.path / _FACTS
        begun = path.is_file() and self.newest() is not None
        if begun and (difference := _difference(read_json_object(path), about)):
            raise CheckpointError(
                f"{self.path} holds a run with other settings, data or base ({difference}); give a new `output`, or "
                "remove the folder"
            )
        write_json(path, about)
        return about

    def append(self, row: Mapping[str, object]) -> None:
        """Add a line to the log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def trim_log(self, step: int) -> None:
        """Drop the lines of steps after `step`, which will be taken again, and one that was cut off."""
        if not self.log.is_file():
            return
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step and line.endswith("\n"):
                    kept.append(line)
            except ValueError:
                continue
        partial = self.log.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.log)

    def _steps(self) -> list[int]:
        return sorted(step for step, f in checkpoint_folders(self.path).items() if (f / _MARK).is_file())


def _decisive(about: Mapping[str, object]) -> dict[str, object]:
    """Return what decides the numbers of a run, flat."""
    settings = about["settings"]
    if not isinstance(settings, dict):
        return {}
    kept = _flat({k: v for k, v in settings.items() if k not in _MOVABLE})
    kept.pop("data.folder", None)
    kept |= {name: about[name] for name in ("steps", _BASE) if name in about}
    return {**kept, **_flat({"data_sha256": about["data_sha256"]})}


def _flat(value: Mapping[str, object], where: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{where}{key}.")
        else:
            flat[f"{where}{key}"] = item
    return flat


def _difference(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Return the first thing that decides the numbers of a run and is not as it was; "" where there is none."""
    old, new = _decisive(before), _decisive(after)
    if _BASE not in old:  # a run that was begun before this was recorded
        new.pop(_BASE, None)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return f"{changed[0]} was {old.get(changed[0])!r}, now {new.get(changed[0])!r}" if changed else ""
