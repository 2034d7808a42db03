"""Wordings: the same request to a model in other words, for a control that varies the prompt and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

from diffretriever.errors import InputError
from diffretriever.prompts import Prompt


def wordings(prompt: Prompt, count: int) -> list[Prompt]:
    """Return `count` prompts that ask for the same in other words; turns, opening of the answer and tail stay.

    Args:
        prompt: the prompt of the model.
        count: how many.

    Raises:
        InputError: the prompt asks for nothing that could be said otherwise, or there are not so many wordings.
    """
    if "words" not in prompt.query.user:
        raise InputError(
            f"the prompt {prompt.name!r} does not ask for words, so it cannot be reworded; use --control noise"
        )
    path = files("diffretriever") / "data" / "paraphrases" / "few.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    if count > len(known):
        raise InputError(f"{count} wordings are needed for a grid of {count}, there are {len(known)}")
    return [
        replace(
            prompt,
            name=f"wording{number}",
            query=replace(prompt.query, user=known[number]["query"]),
            passage=replace(prompt.passage, user=known[number]["passage"]),
        )
        for number in range(count)
    ]
