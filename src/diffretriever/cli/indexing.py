"""Commands that make and change an index: index, add, delete, info."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.building import Build, begin, finish, refuse_finished
from diffretriever.cli.console import message, result, show, size_text, time_text
from diffretriever.cli.estimating import estimate_index
from diffretriever.cli.filling import Survey, default_step, fill, opened_corpus, report_problems, survey
from diffretriever.cli.models import ModelOptions, load_recorded, remember_prompt
from diffretriever.interrupts import uninterrupted

if TYPE_CHECKING:
    from diffretriever.cli.models import OpenedEncoder
    from diffretriever.corpus import Passage, PassageReader
    from diffretriever.encoder import Encoder
    from diffretriever.index import Index

#: Passages from which principal components are found, and sizes and times estimated.
SAMPLE = 512


class Backend(str, Enum):
    """Engines that keep an index."""

    EDGE = "edge"
    EXACT = "exact"


BackendOption = Annotated[Backend, typer.Option(help="edge (search engine) or exact (compares with everything).")]


def index(
    source: opt.Input,
    out: opt.Out = None,
    estimate: opt.Estimate = False,
    file_format: opt.Format = None,
    on_error: opt.BadLines = opt.OnError.RAISE,
    overwrite: opt.Overwrite = False,
    backend: BackendOption = Backend.EDGE,
    storage: opt.StorageOption = opt.StorageDtype.FLOAT16,
    codes: opt.CodesOption = None,
    pca: opt.Pca = None,
    drop: opt.Drop = None,
    durable: opt.Durable = False,
    words: opt.Words = 3,
    idf: opt.IdfOption = opt.IdfSource.COLLECTION,
    batch_size: opt.BatchSize = None,
    model: opt.DefaultModel = "mini",
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch_tokens: opt.BatchTokens = None,
    query_slots: opt.QuerySlots = None,
    passage_slots: opt.PassageSlots = None,
    prompt: opt.PromptOption = None,
    protocol: opt.ProtocolOption = None,
    readout: opt.ReadoutOption = None,
    steps: opt.Steps = None,
    system: opt.SystemOption = None,
    devices: opt.Devices = None,
) -> None:
    """Encode the passages of INPUT into a new index; the same command goes on after an interruption."""
    from diffretriever.index import Storage

    if out is None and not estimate:
        raise typer.BadParameter("give the folder of the new index as --out DIR, or --estimate")
    chosen = Storage(storage.value, None if codes is None else codes.value, pca, drop)
    named = system and system.value
    choice = ModelOptions(
        model, device, dtype, batch_tokens, query_slots, passage_slots, prompt, protocol, readout, steps, named,
        devices=devices,
    )  # fmt: skip
    with opened_corpus(source, file_format, on_error) as passages:
        found = survey(passages, source)
        message(f"{found.passages:,} passages in {found.name}")
        if out is None or estimate:
            estimate_index(choice.load(), passages, found, words=words)
            return report_problems(found)
        if not overwrite:
            refuse_finished(out)
        encoder = choice.load()
        step = batch_size or default_step(encoder)
        kept = {"backend": backend.value, "storage": chosen, "words": words, "idf": idf.value}
        build = Build.of(source, encoder, **kept, batch_size=step, format=file_format, on_error=on_error)
        new = begin(
            out, build, encoder, backend.value, chosen, idf.value, overwrite=overwrite, durable=durable,
            sample=lambda: encoder.encode_passages(list(islice(passages, SAMPLE))),
        )  # fmt: skip
        _complete(new, encoder, passages, found, out, words, step)
        finish(out, build)
    report_problems(found)


def _complete(
    new: Index, encoder: OpenedEncoder, passages: PassageReader, found: Survey, out: Path, words: int, step: int
) -> None:
    """Put into a new or interrupted index what it lacks."""
    with closing(new):
        remember_prompt(new, encoder)
        known = set(new)
        if known:
            message(f"going on: {len(known):,} passages are there already")
        _fill(new, encoder, passages, found, out, words, step, known=known)


def add(
    folder: opt.IndexFolder,
    source: opt.Input,
    file_format: opt.Format = None,
    on_error: opt.BadLines = opt.OnError.RAISE,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave passages that the index holds as they are.")
    ] = False,
    durable: opt.Durable = False,
    words: opt.Words = 3,
    batch_size: opt.BatchSize = None,
    model: opt.RecordedModel = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch_tokens: opt.BatchTokens = None,
    prompt: opt.RecordedPrompt = None,
    devices: opt.Devices = None,
) -> None:
    """Encode the passages of INPUT into an index; a passage whose id it holds is replaced."""
    from diffretriever.index import Index

    with (
        closing(Index.open(folder, durable=durable)) as old,
        opened_corpus(source, file_format, on_error) as passages,
    ):
        found = survey(passages, source, set(old) if skip_existing else frozenset())
        message(f"{found.passages:,} passages in {found.name}" + (f", {found.skipped:,} skipped" * bool(found.skipped)))
        if found.passages:
            encoder = load_recorded(
                old, model=model, device=device, dtype=dtype, batch_tokens=batch_tokens, prompt=prompt, devices=devices
            )
            known = set(old) if skip_existing else frozenset()
            new = (passage for passage in passages if passage.passage_id not in known)
            _fill(old, encoder, new, found, folder, words, batch_size or default_step(encoder))
    report_problems(found)


def delete(
    folder: opt.IndexFolder,
    passage_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of passages.")],
) -> None:
    """Remove passages from an index; an unknown id is an error, and then nothing is removed."""
    from diffretriever.index import Index

    with closing(Index.open(folder)) as old, uninterrupted():
        old.delete(passage_ids)
        message(f"removed {len(set(passage_ids)):,} passages, {len(old):,} are left")


def info(folder: opt.IndexFolder, as_json: opt.AsJson = False) -> None:
    """Show what an index holds and how it was made."""
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from diffretriever.index import Index

    with closing(Index.open(folder)) as old:
        stats, provenance = old.stats(), old.manifest.provenance
    if as_json:
        result(
            json.dumps({**asdict(stats), "provenance": asdict(provenance)}, ensure_ascii=False, indent=1, default=str)
        )
        return
    table = Table(show_header=False, title=str(folder), title_justify="left")
    for name, value in [*asdict(stats).items(), *asdict(provenance).items()]:
        if name != "provenance":
            shown = size_text(value) if "bytes" in name else f"{value:,}" if isinstance(value, int) else str(value)
            table.add_row(name.replace("_", " "), Text(shown))
    show(table)


@contextmanager
def closing(opened: Index) -> Iterator[Index]:
    """Close an index at the end whatever happens, a second Ctrl-C included."""
    try:
        yield opened
    finally:
        with uninterrupted():
            opened.close()


def _measure(index: Index) -> None:
    """Count terms; where searches of an index in a folder will be approximate, measure how deep they must go."""
    with uninterrupted():
        terms = index.current_terms()
        if terms is not None and not terms.fits(len(index)):  # a server's, which are not counted by themselves
            index.count_terms()
    slots = index.manifest.provenance.query_slots
    if isinstance(index.stats().path, Path) and index.is_approximate(slots):
        with uninterrupted():
            index.current_calibration()


def _fill(
    target: Index,
    encoder: Encoder,
    passages: Iterable[Passage],
    found: Survey,
    folder: Path | str,
    words: int,
    batch_size: int,
    *,
    known: Container[str] = frozenset(),
) -> None:
    started = time.monotonic()
    try:
        count = fill(target, encoder, passages, found, words=words, batch_size=batch_size, known=known)
    except KeyboardInterrupt:
        message(f"stopped: {folder} holds {len(target):,} passages and can be searched; the same command goes on")
        raise typer.Exit(130) from None
    _measure(target)
    message(f"indexed {count:,} passages in {time_text(time.monotonic() - started)}; {folder} holds {len(target):,}")
