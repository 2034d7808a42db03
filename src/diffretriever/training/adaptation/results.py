"""AdaptationResults: what an adaptation measured, on disk after every measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffretriever.errors import InputError
from diffretriever.json_files import read_json_object, write_json


@dataclass(frozen=True)
class Measurement:
    """Held-out cross entropy after some steps.

    Attributes:
        step: optimiser steps so far.
        tokens: tokens that went through the model in this process, padding left out.
        loss: mean training loss since the measurement before; None at the start.
        cross_entropy: mask rate -> nats per masked token of plain texts.
        slots: nats per salient word, in prompts all of whose slots are masked; None where the mix has no prompt.
    """

    step: int
    tokens: int
    loss: float | None
    cross_entropy: Mapping[str, float]
    slots: float | None = None


@dataclass
class AdaptationResults:
    """The results file of a run.

    Attributes:
        about: settings, digests of the texts, versions and machine.
        rows: measurements, by rising step.
    """

    about: Mapping[str, Any]
    rows: list[Measurement] = field(default_factory=list)

    @staticmethod
    def resume(path: Path, about: Mapping[str, Any]) -> AdaptationResults:
        """Return the results that stand in a file, or new ones where there is none.

        Raises:
            InputError: the file belongs to a run with other settings or texts.
        """
        if not path.is_file():
            return AdaptationResults(about)
        raw = read_json_object(path, InputError)
        wanted = json.loads(json.dumps(about))
        for key in ("settings", "texts"):
            if raw["about"].get(key) != wanted[key]:
                raise InputError(f"{path} belongs to a run with other {key}; give another output folder or remove it")
        return AdaptationResults(about, [Measurement(**row) for row in raw["rows"]])

    def since(self, step: int) -> None:
        """Forget measurements of later steps, which are taken again."""
        self.rows = [row for row in self.rows if row.step <= step]

    def write(self, path: Path) -> None:
        """Write everything, whole or not at all."""
        write_json(path, {"about": self.about, "rows": [asdict(row) for row in self.rows]})
