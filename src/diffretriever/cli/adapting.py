"""The command adapt: an encoder or a causal model made into a masked-diffusion language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli.console import message, show

if TYPE_CHECKING:
    from diffretriever.training.adaptation.results import AdaptationResults

_TRAINING = "Training"
_MIX = "Mix"


Base = Annotated[
    str, typer.Argument(metavar="BASE", help="What to start from: a folder, a GGUF file, minilm, smollm2 or a hub id.")
]
Texts = Annotated[
    list[str],
    typer.Argument(metavar="TEXTS...", help="Plain texts: Parquet, JSONL, or .txt with a text on every line."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for checkpoints, results and the model.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.", rich_help_panel=_TRAINING)]
Batch = Annotated[int, typer.Option(min=1, help="Texts of a forward pass.", rich_help_panel=_TRAINING)]
Accumulate = Annotated[int, typer.Option(min=1, help="Forward passes of a step.", rich_help_panel=_TRAINING)]
Length = Annotated[int, typer.Option(min=1, help="Longest text in tokens.", rich_help_panel=_TRAINING)]
LearningRate = Annotated[float, typer.Option("--lr", help="Peak learning rate.", rich_help_panel=_TRAINING)]
Bf16 = Annotated[bool, typer.Option(help="Products in bf16.", rich_help_panel=_TRAINING)]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Recompute activations, to save memory.", rich_help_panel=_TRAINING)
]
Seed = Annotated[int, typer.Option(min=0, help="Decides every draw.", rich_help_panel=_TRAINING)]
PromptShare = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Share of texts in the retrieval prompt with its slots.", rich_help_panel=_MIX),
]
PromptName = Annotated[
    str | None, typer.Option(help="Template of that prompt.", show_default=False, rich_help_panel=_MIX)
]
Slots = Annotated[int, typer.Option(min=1, help="Slots in that prompt.", rich_help_panel=_MIX)]
HeldOut = Annotated[int, typer.Option(min=1, help="Texts kept from training, to measure on.")]
Every = Annotated[int, typer.Option(min=1, help="Steps from one to the next.")]
Device = Annotated[str | None, typer.Option(help="cpu leaves a GPU alone.", show_default=False)]


def adapt(
    base: Base,
    texts: Texts,
    out: Out,
    steps: Steps = 1000,
    batch: Batch = 32,
    accumulate: Accumulate = 1,
    length: Length = 128,
    learning_rate: LearningRate = 3e-4,
    bf16: Bf16 = True,
    recompute: Recompute = False,
    seed: Seed = 1,
    prompt_share: PromptShare = 0.3,
    prompt: PromptName = None,
    query_slots: Slots = 4,
    passage_slots: Slots = 16,
    held_out: HeldOut = 256,
    evaluate_every: Every = 200,
    save_every: Every = 200,
    device: Device = None,
) -> None:
    """Teach a model to fill masked tokens (masked diffusion), and show its held-out cross entropy on the way.

    The finished model is in DIR/model; the same command goes on after an interruption.
    """
    from diffretriever.training.adaptation.run import adapt as run
    from diffretriever.training.adaptation.settings import AdaptationSettings

    settings = AdaptationSettings(
        base=base,
        texts=tuple(texts),
        output=str(out),
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        length=length,
        prompt_share=prompt_share,
        prompt=prompt,
        query_slots=query_slots,
        passage_slots=passage_slots,
        learning_rate=learning_rate,
        held_out=held_out,
        evaluate_every=evaluate_every,
        save_every=save_every,
        seed=seed,
        bf16=bf16,
        recompute=recompute,
    )
    try:
        results = run(settings, device=device, progress=True)
    except KeyboardInterrupt:
        message(f"stopped: {out} keeps the last checkpoint; the same command goes on")
        raise typer.Exit(130) from None
    _show(results)
    message(f"{out / 'model'}: written")


def _show(results: AdaptationResults) -> None:
    from rich.table import Table

    table = Table(title="held-out cross entropy, nats per masked token", title_justify="left")
    rates = list(results.rows[0].cross_entropy)
    for name in ("step", "tokens", "loss", *(f"t = {rate}" for rate in rates), "slots"):
        table.add_column(name, justify="right")
    for row in results.rows:
        values = [row.loss, *(row.cross_entropy[rate] for rate in rates), row.slots]
        table.add_row(f"{row.step:,}", f"{row.tokens:,}", *("" if v is None else f"{v:.3f}" for v in values))
    show(table)
