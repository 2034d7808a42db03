"""Options of the studies, and the lists of numbers they are written as."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffretriever.errors import InputError

_STUDY = "Study"

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        help="mini, folders or hub ids; a causal model is measured as PromptReps, another one as DiffRetriever, and "
        "diffembed:MODEL or repllama:MODEL as that system.",
        show_default=False,
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        help="A published shape with random weights, nothing downloaded: dream-7b, llada-8b, qwen2.5-7b, llama3-8b, "
        "smollm2-135m, tiny-dream, tiny-qwen2; may be repeated.",
        show_default=False,
    ),
]
LatencyOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of latency.json.")]
Lengths = Annotated[str, typer.Option(help="Tokens of the texts.", rich_help_panel=_STUDY)]
Slots = Annotated[str, typer.Option(help="Masked positions K of DiffRetriever.", rich_help_panel=_STUDY)]
Answers = Annotated[str, typer.Option(help="Decoded tokens N of PromptReps.", rich_help_panel=_STUDY)]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Texts, and queries, of a larger call; by default 32 on a GPU and 8 on a CPU.",
        show_default=False,
        rich_help_panel=_STUDY,
    ),
]
Sizes = Annotated[
    str | None,
    typer.Option(
        help="Passages of the indexes searched, 0 for none; by default up to 1,000,000 on a GPU, 50,000 on a CPU.",
        show_default=False,
        rich_help_panel=_STUDY,
    ),
]
SearchSlots = Annotated[str, typer.Option(help="Pairs K_q:K_p of the searches.", rich_help_panel=_STUDY)]
Rounds = Annotated[int, typer.Option(min=1, help="Timed calls of each.", rich_help_panel=_STUDY)]
Seconds = Annotated[
    float, typer.Option(min=0.0, help="Time after which the calls of one point end early.", rich_help_panel=_STUDY)
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", rich_help_panel=_STUDY)]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of a CPU.", show_default=False, rich_help_panel=_STUDY)
]
Source = Annotated[
    str,
    typer.Option(
        "--collection",
        "-c",
        metavar="PATH",
        help="The collection that pairs are chosen on: a BEIR folder, ir_datasets:ID, or scifact (bundled).",
    ),
]
SweepModel = Annotated[str, typer.Argument(metavar="MODEL", help="mini (shipped), a folder, an alias or a hub id.")]
SweepSplit = Annotated[
    str,
    typer.Option(
        "--split", help="Split of the judgements that pairs are chosen on; a choice on the test's flatters it there."
    ),
]
Grid = Annotated[str, typer.Option(help="Values of K_q and of K_p.", rich_help_panel=_STUDY)]
Transfer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="A collection on which the chosen pair is compared with the best one there; may be repeated.",
        show_default=False,
        rich_help_panel=_STUDY,
    ),
]
TransferSplit = Annotated[
    str | None,
    typer.Option(
        help="Split of the judgements of the transfer; by default test, or the only one.",
        show_default=False,
        rich_help_panel=_STUDY,
    ),
]
SweepModes = Annotated[
    str, typer.Option(metavar="M,M,...", help="dense (MaxSim), sparse, hybrid.", rich_help_panel=_STUDY)
]
Measure = Annotated[str, typer.Option(help="Measure that pairs are chosen by.", rich_help_panel=_STUDY)]
Control = Annotated[
    list[str] | None,
    typer.Option(
        help="Control of the oracle per query: noise (on the masked positions), prompts (other wordings), or none; may "
        "be repeated. By default noise.",
        show_default=False,
        rich_help_panel=_STUDY,
    ),
]
NoiseSize = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Noise of the control, in units of the deviation of the input embeddings.",
        rich_help_panel=_STUDY,
    ),
]


def numbers(text: str, least: int = 1) -> list[int]:
    """Return the whole numbers of a comma-separated list.

    Raises:
        InputError: one of them is none, or below `least`.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{text!r} is no list of whole numbers; write 1,4,16") from error
    if min(found) < least:
        raise InputError(f"{text!r} holds {min(found)}; the least is {least}")
    return found


def pairs(text: str) -> list[tuple[int, int]]:
    """Return the pairs of a list such as 1:1,4:16.

    Raises:
        InputError: a pair is not two whole numbers.
    """
    found = []
    for part in text.split(","):
        sides = numbers(part.replace(":", ","))
        if len(sides) != 2:
            raise InputError(f"{part!r} is no pair; write K_q:K_p, such as 4:16")
        found.append((sides[0], sides[1]))
    return found
