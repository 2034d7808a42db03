"""The command encode: representations written to files, without an index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.console import message
from diffretriever.cli.filling import encoded_chunks, opened_corpus, report_problems, survey
from diffretriever.cli.interrupts import uninterrupted
from diffretriever.cli.models import ModelOptions

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
) -> None:
    """Write representations of passages or queries: DIR/part-00000, part-00001 ..., each with its ids.json."""
    if not overwrite:
        _refuse_existing(out)
    named = system and system.value
    choice = ModelOptions(
        model, device, dtype, batch_tokens, query_slots, passage_slots, prompt, protocol, readout, steps, named
    )
    if overwrite:
        for old in sorted(out.glob("part-*")):
            shutil.rmtree(old)
    if queries:
        _encode_queries(source, out, choice, words, batch_size or _QUERY_STEP)
        return
    from diffretriever.progress import progress_bar

    with opened_corpus(source, file_format, on_error) as passages:
        found = survey(passages, source)
        message(f"{found.passages:,} passages in {found.name}")
        encoder, done = choice.load(), 0
        try:
            with progress_bar("encoding", found.passages) as advance:
                chunks = encoded_chunks(encoder, iter(passages), words=words, batch_size=batch_size)
                for number, (chunk, representations) in enumerate(chunks):
                    _write_part(out, number, [passage.passage_id for passage in chunk], representations)
                    done += len(chunk)
                    advance(len(chunk))
        except KeyboardInterrupt:
            message(f"stopped: {out} holds the first {done:,} passages")
            raise typer.Exit(130) from None
    message(f"{out}: {done:,} passages")
    report_problems(found)


def _encode_queries(source: str, out: Path, choice: ModelOptions, words: int, step: int) -> None:
    from diffretriever.corpus import read_queries

    asked = read_queries(source)
    message(f"{len(asked):,} queries in {source}")
    encoder = choice.load()
    for number, start in enumerate(range(0, len(asked), step)):
        chunk = asked[start : start + step]
        _write_part(
            out,
            number,
            [query.query_id for query in chunk],
            encoder.encode_queries([q.text for q in chunk], words=words),
        )
    message(f"{out}: {len(asked):,} queries")


def _write_part(out: Path, number: int, ids: list[str], representations: Representations) -> None:
    """Write one part; a part that is there is whole, since it gets its name last."""
    part = out / f"part-{number:05}"
    unfinished = part.with_name("." + part.name)
    with uninterrupted():
        representations.save(unfinished)
        (unfinished / IDS_FILE).write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
        unfinished.rename(part)


def _refuse_existing(folder: Path) -> None:
    """Raise InputError, before the model is loaded, if the folder holds something already."""
    from diffretriever.errors import InputError

    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} exists already; choose another folder, or replace it with --overwrite")
