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
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="YAML file of settings, or the name of a shipped one, such as mini."),
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show tokens, steps, memory and hours, and write nothing.")
    ] = False,
) -> None:
    """Fine-tune a model as a recipe says; the same command goes on where a stopped run left off.

    On several GPUs: torchrun --nproc-per-node N -m diffretriever train RECIPE, or accelerate launch.
    """
    from diffretriever.training.recipes import find_recipe, read_stages

    file = find_recipe(recipe)
    if file != recipe:
        message(f"recipe {file}")
    stages = read_stages(file, overrides or ())
    if dry_run:
        from diffretriever.cli.dry_run import show_estimates

        show_estimates(stages)
        return
    from diffretriever.training.run import train as run

    for number, settings in enumerate(stages, 1):
        message(f"training in {settings.output}" + (f", stage {number} of {len(stages)}" if len(stages) > 1 else ""))
        finished = run(settings, progress=True)
    result(str(finished))
