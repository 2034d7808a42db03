"""Filling: passages of a corpus encoded and put into an index, with an estimate before and progress during the work."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from diffretriever.cli.console import message, size_text, time_text
from diffretriever.cli.options import FileFormat, OnError
from diffretriever.corpus import Passage, PassageReader, Problem, read_passages
from diffretriever.corpus import problems as corpus
from diffretriever.corpus.lines import STDIN, open_bytes, source_name
from diffretriever.corpus.rows import Format
from diffretriever.errors import CorpusError
from diffretriever.interrupts import uninterrupted
from diffretriever.progress import progress_bar

if TYPE_CHECKING:
    from diffretriever.encoder import Encoder
    from diffretriever.index import Index
    from diffretriever.representations import Representations

#: Passages of a step, and tokens of a forward pass for which there is one more.
_STEP, _STEP_TOKENS = 64, 64
#: Seconds without a word where no bar is shown.
_SILENCE = 20.0
#: Characters beyond which a passage is cut off by any usual sequence length and costs no more time.
_LONGEST_TEXT = 3000


@dataclass(frozen=True)
class Survey:
    """What a first reading of a corpus found.

    Attributes:
        name: its name in messages.
        passages: number of usable passages that are not known yet.
        skipped: number of known passages.
        work: characters to encode, long texts counted as far as they are read.
        problems: bad lines.
    """

    name: str
    passages: int
    skipped: int
    work: int
    problems: list[Problem]


@contextmanager
def opened_corpus(source: str, file_format: FileFormat | None, on_error: OnError) -> Iterator[PassageReader]:
    """Give the reader of an input; standard input is copied to a temporary file, since it is read twice."""
    chosen = cast("Format | None", file_format and file_format.value)
    policy: corpus.OnError = "report" if on_error is OnError.REPORT else "raise"
    if source != STDIN:
        yield read_passages(source, file_format=chosen, on_error=policy)
        return
    with tempfile.TemporaryDirectory(prefix="diffretriever-") as folder:
        copy = Path(folder) / "stdin"
        with open_bytes(STDIN) as stream, copy.open("wb") as file:
            shutil.copyfileobj(stream, file)
        yield read_passages(copy, file_format=chosen or "jsonl", on_error=policy)


def survey(reader: Iterable[Passage], source: str, known: Container[str] = frozenset()) -> Survey:
    """Read the whole corpus once, so that a bad line is known before hours of encoding and not after.

    Args:
        reader: the corpus.
        source: its name as the user gave it.
        known: ids of passages that need no work.

    Raises:
        CorpusError: a line is bad and the reader does not go on, or there is no passage at all.
    """
    passages = skipped = work = 0
    for passage in reader:
        if passage.passage_id in known:
            skipped += 1
        else:
            passages += 1
            work += work_of(passage)
    name = source_name(source)
    problems = list(reader.problems) if isinstance(reader, PassageReader) else []
    if not passages and not skipped and not problems:
        raise CorpusError(f"{name}: holds no passage")
    return Survey(name, passages, skipped, work, problems)


def report_problems(found: Survey) -> None:
    """Say every bad line again at the end of the work, and end with exit code 1, if there was one."""
    if not found.problems:
        return
    message(f"{len(found.problems):,} bad lines were left out:")
    for problem in found.problems:
        message(f"  {problem}")
    raise typer.Exit(1)


def fill(
    index: Index,
    encoder: Encoder,
    passages: Iterable[Passage],
    found: Survey,
    *,
    words: int = 0,
    batch_size: int | None = None,
    known: Container[str] = frozenset(),
) -> int:
    """Encode passages and put them into an index; returns how many.

    Ctrl-C takes effect between two writes, so what is in the index is whole.

    Args:
        index: an open index.
        encoder: the encoder of that index.
        passages: the passages, in order.
        found: what the corpus holds, for the estimate.
        words: predicted words to keep per slot.
        batch_size: passages per step.
        known: ids of passages that are in the index. A step is left out when all of its passages are, and is done
            whole otherwise, so that every passage is encoded in the same company whether or not work was interrupted.
    """
    done, log = 0, _Log(found)
    with progress_bar("indexing", found.passages) as advance:
        chunks = encoded_chunks(encoder, iter(passages), words=words, batch_size=batch_size, known=known)
        for chunk, representations in chunks:
            with uninterrupted():
                index.add_representations(chunk, representations)
            done += len(chunk)
            advance(len(chunk))
            log.note(chunk, representations)
    return done


class _Log:
    """Says what the work will take after the first step, and how far it is where there is no terminal for a bar."""

    def __init__(self, found: Survey) -> None:
        self._found = found
        self._started = self._said = time.monotonic()
        self._passages = self._work = 0

    def note(self, chunk: list[Passage], representations: Representations) -> None:
        """Take notice of passages that are done."""
        first = not self._passages
        self._passages += len(chunk)
        self._work += sum(work_of(passage) for passage in chunk)
        now, found = time.monotonic(), self._found
        left = time_text((now - self._started) / max(1, self._work) * max(0, found.work - self._work))
        if first:
            size = size_text(found.passages * bytes_per_passage(chunk, representations))
            message(f"about {size} of index data" + (f", about {left} left" if self._passages < found.passages else ""))
        elif now - self._said > _SILENCE and self._passages < found.passages and not sys.stderr.isatty():
            message(f"{self._passages:,} of {found.passages:,}, about {left} left")
        else:
            return
        self._said = now


def encoded_chunks(
    encoder: Encoder,
    stream: Iterator[Passage],
    *,
    words: int,
    batch_size: int | None,
    known: Container[str] = frozenset(),
) -> Iterator[tuple[list[Passage], Representations]]:
    """Yield chunks of passages with their representations, but for chunks that are known.

    The chunks depend on nothing but the sizes: numbers differ in their last digits with the company that a passage is
    encoded in, and an index that was interrupted must come out the same.
    """
    size = batch_size or default_step(encoder)
    fed: deque[list[Passage]] = deque()

    def unknown() -> Iterator[list[Passage]]:
        while chunk := list(islice(stream, size)):
            if not all(passage.passage_id in known for passage in chunk):
                fed.append(chunk)
                yield chunk

    stream_of_encoder = getattr(encoder, "encode_chunks", None)
    if stream_of_encoder is None:
        for chunk in unknown():
            yield fed.popleft(), encoder.encode_passages(chunk, words=words)
        return
    for representations in stream_of_encoder(unknown(), words=words):
        yield fed.popleft(), representations


def default_step(encoder: Encoder) -> int:
    """Return how many passages to encode and store at a time: what an interruption loses at most."""
    return max(_STEP, getattr(encoder, "batch_tokens", 0) // _STEP_TOKENS)


def bytes_per_passage(passages: list[Passage], representations: Representations) -> float:
    """Return about how much disk a passage takes in an index: fp16 vectors, terms, words and its text."""
    r = representations
    vectors = 2 * r.dense.size + 2 * r.pooled.size
    terms = 8 * r.sparse.nnz
    words = 0 if r.words is None else 8 * r.words.ids.size
    texts = sum(len(p.text.encode()) + len(p.title.encode()) + 100 for p in passages)
    return cast(float, vectors + terms + words + texts) / max(1, len(passages))


def work_of(passage: Passage) -> int:
    """Return about how much there is to encode in a passage, in characters."""
    # The constant stands for the prompt and the masked positions, which cost as much as some words.
    return 150 + min(_LONGEST_TEXT, len(passage.title) + len(passage.text))
