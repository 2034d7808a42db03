"""Dry run: the cost of a training run, shown before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from diffretriever.cli.console import message, show
from diffretriever.errors import CheckpointError

if TYPE_CHECKING:
    from diffretriever.backbones.sources import Source
    from diffretriever.training.settings import TrainingSettings


def show_estimates(stages: Sequence[TrainingSettings]) -> None:
    """Show what the runs of a recipe will cost, on as many devices as the launcher started processes for."""
    for settings in stages:
        # What later stages start from is made by those before, and has the shape of what the first one trains.
        _show_estimate(replace(settings, model=stages[0].model))
    message("nothing was written; memory and hours are estimates")


def _show_estimate(settings: TrainingSettings) -> None:
    import os

    from rich.table import Table

    from diffretriever.training.estimate import estimate_run, table_rows

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    source = _stand_in(settings.model.base)
    if source is not None:
        message(
            f"{settings.model.base} is not here and cannot be fetched: its published shape and another tokeniser stand "
            "in for it, so that tokens are a guess"
        )
    table = Table(show_header=False, title=f"dry run: {settings.output}", title_justify="left")
    for name, value in table_rows(estimate_run(settings, source, processes=processes)):
        table.add_row(name, value)
    show(table)


def _stand_in(base: str) -> Source | None:
    """Return a source of a base's published shape where the base itself cannot be had."""
    import torch

    from diffretriever.checkpoint import ALIASES, locate
    from diffretriever.studies.shapes import SHAPES, RandomSource

    names = {hub: alias for alias, hub in ALIASES.items()} | _SHAPES
    shape = names.get(base, base)
    if shape not in SHAPES:
        return None
    try:
        locate(base)
    except CheckpointError:
        return RandomSource(shape, torch.device("cpu"), torch.float32, 1)
    return None


_SHAPES = {
    "Dream-org/Dream-v0-Base-7B": "dream-7b",
    "GSAI-ML/LLaDA-8B-Base": "llada-8b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen2.5-7B": "qwen2.5-7b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3-8b",
    "meta-llama/Meta-Llama-3-8B": "llama3-8b",
}
