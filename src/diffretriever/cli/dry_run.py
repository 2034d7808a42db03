"""Dry run: the cost of a training run, shown before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from diffretriever.cli.console import message, show
from diffretriever.errors import CheckpointError

#: Settings of a model that it has from what it starts from, where the recipe leaves them open.
_RECORDED = ("query_slots", "passage_slots", "prompt", "slot_positions", "terms")

if TYPE_CHECKING:
    from diffretriever.backbones.sources import Source
    from diffretriever.training.model_settings import ModelSettings
    from diffretriever.training.settings import TrainingSettings


def show_estimates(stages: Sequence[TrainingSettings]) -> None:
    """Show what the runs of a recipe will cost, on as many devices as the launcher started processes for."""
    model = stages[0].model
    for settings in stages:
        model = _from_the_first_base(settings.model, model)
        _show_estimate(replace(settings, model=model))
    message("nothing was written; memory and hours are estimates")


def _from_the_first_base(model: ModelSettings, before: ModelSettings) -> ModelSettings:
    """Return a stage's settings as over the first one's base: the model that it starts from is not made yet.

    Args:
        model: of the stage.
        before: what this returned for the stage before; for the first, its own.
    """
    # What a checkpoint records is read as it says, unless by another system.
    recorded = _RECORDED if model.system == before.system else ()
    kept = {name: getattr(before, name) for name in recorded if getattr(model, name) is None}
    layer = model.pooling_layer or before.pooling_layer
    return replace(model, base=before.base, sha256=before.sha256, pooling_layer=layer, **kept)


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
