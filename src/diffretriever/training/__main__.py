"""`python -m diffretriever.training RECIPE [--set key=value]`: run a recipe, going on where a stopped run left off."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from diffretriever.training.config import read_recipe
from diffretriever.training.export import export_student
from diffretriever.training.student import Student, backbone_from_encoder, base_folder
from diffretriever.training.teacher import Teacher
from diffretriever.training.trainer import Trainer


def main() -> None:
    """Run the recipe named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m diffretriever.training", description=__doc__)
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. loss.words=0.2")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = read_recipe(arguments.recipe, arguments.set)
    folder = base_folder(recipe.base, recipe.base_sha256)
    torch.manual_seed(recipe.seed)
    backbone = backbone_from_encoder(folder)
    student = Student(backbone, recipe.settings(), recipe.chunk)
    Trainer(recipe, student, Teacher(backbone, recipe.chunk), backbone.tokenizer).run()
    export_student(student, Path(recipe.output) / "model")


if __name__ == "__main__":
    main()
