"""The command encode: representations written to files, without an index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.building import BUILD_NOTE, Build, finish
from diffretriever.cli.console import message
from diffretriever.cli.filling import default_step, encoded_chunks, opened_corpus, report_problems, survey
from diffretriever.cli.models import ModelOptions
from diffretriever.interrupts import uninterrupted
from diffretriever.progress import progress_bar

if TYPE_CHECKING:
    from diffretriever.representations import Representations

IDS_FILE = "ids.json"
_QUERY_STEP = 1024


def encode(
    source: opt.Input,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the representations.")],
    queries: Annotated[bool, typer.Option("--queries", help="INPUT holds queries, not passages.")] = False,
    file_format: opt.Format = None,
    on_error: opt.BadLines = opt.OnError.RAISE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote.")] = False,
    words: opt.Words = 0,
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
    """Write representations of passages or queries: DIR/part-00000, part-00001 ..., each with its ids.json.

    The same command goes on after an interruption.
    """
    if overwrite:
        _clear(out)
    _refuse_other(out)
    named = system and system.value
    choice = ModelOptions(
        model, device, dtype, batch_tokens, query_slots, passage_slots, prompt, protocol, readout, steps, named,
        devices=devices,
    )  # fmt: skip
    if queries:
        _encode_queries(source, out, choice, words, batch_size or _QUERY_STEP)
        return
    with opened_corpus(source, file_format, on_error) as passages:
        found = survey(passages, source)
        message(f"{found.passages:,} passages in {found.name}")
        encoder = choice.load()
        step = batch_size or default_step(encoder)
        build = Build.of(
            source, encoder, content="passages", words=words, batch_size=step, format=file_format, on_error=on_error
        )
        number, done = _begin(out, build, (passage.passage_id for passage in passages))
        try:
            with progress_bar("encoding", found.passages) as advance:
                advance(done)
                rest = islice(iter(passages), done, None)
                for chunk, representations in encoded_chunks(encoder, rest, words=words, batch_size=step):
                    _write_part(out, number, [passage.passage_id for passage in chunk], representations)
                    number, done = number + 1, done + len(chunk)
                    advance(len(chunk))
        except KeyboardInterrupt:
            message(f"stopped: {out} holds the first {done:,} passages; the same command goes on")
            raise typer.Exit(130) from None
        finish(out, build)
    message(f"{out}: {done:,} passages")
    report_problems(found)


def _encode_queries(source: str, out: Path, choice: ModelOptions, words: int, step: int) -> None:
    from diffretriever.corpus import read_queries

    asked = read_queries(source)
    message(f"{len(asked):,} queries in {source}")
    encoder = choice.load()
    build = Build.of(source, encoder, content="queries", words=words, batch_size=step)
    number, done = _begin(out, build, (query.query_id for query in asked))
    for start in range(done, len(asked), step):
        chunk = asked[start : start + step]
        representations = encoder.encode_queries([q.text for q in chunk], words=words)
        _write_part(out, number, [query.query_id for query in chunk], representations)
        number += 1
    finish(out, build)
    message(f"{out}: {len(asked):,} queries")


def _begin(out: Path, build: Build, ids: Iterable[str]) -> tuple[int, int]:
    """Return how many parts an earlier call wrote, and of how many texts.

    Raises:
        InputError: they were made otherwise, or of another input.
    """
    from diffretriever.errors import InputError

    begun = Build.read(out)
    if begun is not None and (different := begun.differences(build)):
        raise InputError(
            f"{out} was begun with other options (then against now): {'; '.join(different)}. Repeat the command with "
            "those options, or begin anew with --overwrite"
        )
    out.mkdir(parents=True, exist_ok=True)
    build.write(out)
    parts = _written_parts(out)
    written = [i for part in parts for i in json.loads((part / IDS_FILE).read_text(encoding="utf-8"))]
    if written != list(islice(ids, len(written))):
        raise InputError(
            f"{out} was begun with another input: its ids are not the first ones; begin anew with --overwrite"
        )
    if written:
        message(f"going on: {len(written):,} are there already")
    return len(parts), len(written)


def _written_parts(out: Path) -> list[Path]:
    """Return the parts of a folder in order; they are written one after the other."""
    return [part for n, part in enumerate(sorted(out.glob("part-*"))) if part == _part(out, n)]


def _part(out: Path, number: int) -> Path:
    return out / f"part-{number:05}"


def _write_part(out: Path, number: int, ids: list[str], representations: Representations) -> None:
    """Write one part; a part that is there is whole, since it gets its name last."""
    part = _part(out, number)
    unfinished = part.with_name("." + part.name)
    with uninterrupted():
        representations.save(unfinished)
        (unfinished / IDS_FILE).write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
        unfinished.rename(part)


def _refuse_other(folder: Path) -> None:
    """Raise InputError, before the model is loaded, if the folder holds anything but unfinished work."""
    from diffretriever.errors import InputError

    if folder.is_dir() and (begun := Build.read(folder)) is not None and not begun.finished:
        return
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} exists already; choose another folder, or replace it with --overwrite")


def _clear(folder: Path) -> None:
    """Remove what an earlier call wrote."""
    if folder.is_dir():
        (folder / BUILD_NOTE).unlink(missing_ok=True)
        for old in [*folder.glob("part-*"), *folder.glob(".part-*")]:
            shutil.rmtree(old)
