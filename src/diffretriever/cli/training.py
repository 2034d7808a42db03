"""Command `train`: a recipe made into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffretriever.cli.console import message, result

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as optimisation.steps=100; repeatable."),
]


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file of settings, such as recipes/mini.yaml.")],
    overrides: Overrides = None,
) -> None:
    """Fine-tune a model as a recipe says; the same command goes on where a stopped run left off.

    On several GPUs: torchrun --nproc-per-node N -m diffretriever.cli.main train RECIPE, or accelerate launch.
    """
    from diffretriever.training.recipes import read_recipe
    from diffretriever.training.run import train as run

    settings = read_recipe(recipe, overrides or ())
    message(f"training in {settings.output}")
    result(str(run(settings, progress=True)))
