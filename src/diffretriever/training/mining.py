"""Mining: hard negatives for training rows, chosen from the ranking of an index or of BM25."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from diffretriever.corpus import Problem
from diffretriever.corpus.lines import COMPRESSIONS
from diffretriever.corpus.records import RecordError, identifier, text_value
from diffretriever.corpus.rows import Row, read_rows
from diffretriever.errors import CorpusError, InputError
from diffretriever.json_files import differences, read_json_object, write_json
from diffretriever.progress import progress_bar
from diffretriever.training.rankers import Candidate, MinedRow, Ranked, Ranker, RowPassage

Choice = Literal["random", "top"]
#: Rows ranked and written at a time: what an interruption may lose.
STEP = 64


@dataclass(frozen=True)
class MiningSettings:
    """Which passages of a ranking become negatives.

    Attributes:
        first: rank, counted from 1, at which the window begins.
        last: rank at which it ends.
        negatives: negatives of a row at most.
        margin: share of the positive's score above which a candidate is taken for an unjudged positive and left out
            (.95 in NV-Retriever, Moreira et al. 2024); None keeps all.
        gap: difference to the positive's score that a candidate must have at least; None asks for none.
        choice: "random" draws from what the window leaves, "top" takes the best ranked.
        seed: decides the draws; row and seed alone do, so that every process draws the same.
    """

    first: int = 1
    last: int = 100
    negatives: int = 15
    margin: float | None = 0.95
    gap: float | None = None
    choice: Choice = "random"
    seed: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise InputError(f"the window of ranks must begin at 1 or later and not end before, got {self}")
        if self.negatives < 1:
            raise InputError(f"negatives must be at least 1, got {self.negatives}")
        if self.margin is not None and self.margin <= 0:
            raise InputError(f"margin is a share of the positive's score and must be above 0, got {self.margin}")
        if self.choice not in ("random", "top"):
            raise InputError(f"choice must be 'random' or 'top', got {self.choice!r}")


class Chosen(NamedTuple):
    """The negatives of one row, by falling rank, and how many candidates each rule left out."""

    negatives: list[Candidate]
    left_out: Counter[str]


@dataclass(frozen=True)
class MiningReport:
    """What mining came to.

    Attributes:
        rows: rows written, those of an earlier, interrupted call included.
        negatives: negatives written by this call.
        short: rows of this call with fewer negatives than asked for, those with none included.
        without: rows of this call with none.
        unscored: rows of this call whose positives the source could not score, so that no margin was applied.
        left_out: candidates in the windows of this call that each rule left out.
    """

    rows: int
    negatives: int
    short: int
    without: int
    unscored: int
    left_out: Mapping[str, int]


def choose_negatives(
    row: MinedRow, ranked: Ranked, settings: MiningSettings, number: int, known: frozenset[bytes] = frozenset()
) -> Chosen:
    """Return the negatives of a row.

    Left out are, in this order: passages without text; positives by id; passages whose text, alone or after its title,
    is that of a positive of this query (in whatever row) or the query itself; repeated texts; what scores too close to
    the best positive.

    Args:
        row: the row.
        ranked: what the source found for its query.
        settings: window, margins, number and choice.
        number: the row's number, which with the seed decides the draw.
        known: digests (`digests`) of the positives of other rows with the same query.
    """
    window = ranked.candidates[settings.first - 1 : settings.last]
    positive_ids = {p.passage_id for p in row.positives if p.passage_id}
    refused = known.union({text_digest("", row.query)}, *(digests(p.title, p.text) for p in row.positives))
    limit = _limit(ranked.positive_score, settings)
    kept: dict[bytes, Candidate] = {}
    left_out: Counter[str] = Counter()
    for candidate in window:
        digest = text_digest(candidate.title, candidate.text)
        if not candidate.text.strip():
            left_out["empty"] += 1
        elif candidate.passage_id in positive_ids or digests(candidate.title, candidate.text) & refused:
            left_out["positive"] += 1
        elif digest in kept:
            left_out["repeated"] += 1
        elif candidate.score > limit:
            left_out["margin"] += 1
        else:
            kept[digest] = candidate
    found = list(kept.values())
    if settings.choice == "random" and len(found) > settings.negatives:
        drawn = np.random.default_rng([settings.seed, number]).permutation(len(found))[: settings.negatives]
        found = [found[i] for i in sorted(drawn.tolist())]
    return Chosen(found[: settings.negatives], left_out)


def digests(title: str, text: str) -> frozenset[bytes]:
    """Return the digests of what a passage may look like elsewhere: without its title, or with it in its text."""
    return frozenset({text_digest("", text), text_digest(title, text), text_digest(f"{title}." if title else "", text)})


def text_digest(title: str, text: str) -> bytes:
    """Return a digest of a passage's words: title and text, without regard to case and white space."""
    words = " ".join(f"{title} {text}".casefold().split())
    return blake2b(words.encode(), digest_size=16).digest()


def read_mined_rows(source: str | Path) -> Iterator[MinedRow]:
    """Yield the rows of JSONL or Parquet in the layout of Tevatron's MS MARCO, or of pairs.

    A row has `query`, and `positive_passages` ([{docid, title, text}]) or `positive` (a text or a list of texts);
    `query_id` is its number from 0 where it has none. Negatives that it has already are left behind.

    Raises:
        CorpusError: a row cannot be used; names file and line.
    """
    for number, row in enumerate(read_rows(source)):
        if isinstance(row, Problem):
            raise CorpusError(str(row))
        try:
            yield _row(row, number)
        except RecordError as error:
            raise CorpusError(str(Problem(row.source, row.line, str(error)))) from error


def mine(
    rows: str | Path,
    ranker: Ranker,
    out: Path,
    settings: MiningSettings,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> MiningReport:
    """Write each row with its negatives, in order, and return what that came to; the same call goes on where one ended.

    Beside the file stands `OUT.mining.json` with source, settings and, at the end, the report.

    Args:
        rows: training rows; see `read_mined_rows`.
        ranker: what ranks passages for queries.
        out: JSONL file in the layout {query_id, query, positive_passages, negative_passages}.
        settings: which ranked passages become negatives.
        overwrite: start anew where the file was made in another way.
        progress: whether to show a progress bar on a terminal.

    Raises:
        CorpusError: a row cannot be used.
        InputError: the file has the name of a packed one, or is there and was made from other rows, by another source
            or with other settings.
    """
    if out.suffix in COMPRESSIONS:
        raise InputError(f"{out} would be plain text under the name of a packed file; give a name in .jsonl")
    read = list(read_mined_rows(rows))
    about = {"rows": str(rows), "digest": _digest(read), "ranker": ranker.about(), "settings": asdict(settings)}
    note = out.with_name(out.name + ".mining.json")
    done = 0 if overwrite else _resume(out, note, about)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, about)
    known = _positives_by_query(read)
    tally: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    with (
        out.open("a" if done else "w", encoding="utf-8") as file,
        progress_bar("mining", len(read), enabled=progress) as bar,
    ):
        bar(done)
        waiting = iter(enumerate(read[done:], done))
        while chunk := list(islice(waiting, STEP)):
            ranked = ranker.rank([row for _, row in chunk], settings.last)
            for (number, row), found in zip(chunk, ranked, strict=True):
                chosen = choose_negatives(row, found, settings, number, known[row.query])
                _write(file, row, chosen.negatives)
                tally.update(_tallied(chosen, found, settings))
                left_out += chosen.left_out
            file.flush()
            bar(len(chunk))
    counts = {k: tally[k] for k in ("negatives", "short", "without", "unscored")}
    report = MiningReport(rows=len(read), left_out=dict(left_out), **counts)
    write_json(note, {**about, "report": asdict(report)})
    return report


def _limit(positive_score: float | None, settings: MiningSettings) -> float:
    """Return the score above which a candidate is left out."""
    limits = [float("inf")]
    if positive_score is not None and settings.margin is not None:
        limits.append(settings.margin * positive_score)
    if positive_score is not None and settings.gap is not None:
        limits.append(positive_score - settings.gap)
    return min(limits)


def _tallied(chosen: Chosen, found: Ranked, settings: MiningSettings) -> Counter[str]:
    count = len(chosen.negatives)
    return Counter(
        negatives=count,
        short=int(count < settings.negatives),
        without=int(count == 0),
        unscored=int(found.positive_score is None),
    )


def _write(file: IO[str], row: MinedRow, negatives: Sequence[Candidate]) -> None:
    record = {
        "query_id": row.query_id,
        "query": row.query,
        "positive_passages": [{"docid": p.passage_id, "title": p.title, "text": p.text} for p in row.positives],
        "negative_passages": [{"docid": c.passage_id, "title": c.title, "text": c.text} for c in negatives],
    }
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _resume(out: Path, note: Path, about: Mapping[str, object]) -> int:
    """Return how many rows an interrupted call wrote, a half-written last one cut off."""
    if not out.is_file():
        return 0
    instead = "remove it, or replace it with --overwrite (overwrite=True)"
    if not note.is_file():
        raise InputError(f"{out} is there without {note.name}, which would say how it was made; {instead}")
    made = read_json_object(note, InputError)
    wanted = json.loads(json.dumps(about))
    # A finished file's note has a report beside what it was made of.
    if different := differences({key: made.get(key) for key in wanted}, wanted):
        raise InputError(f"{out} is there and was made otherwise ({'; '.join(different)}); {instead}")
    with out.open("rb+") as file:
        whole = lines = 0
        for line in file:
            if line.endswith(b"\n"):
                whole, lines = whole + len(line), lines + 1
        file.truncate(whole)
        os.fsync(file.fileno())
    return lines


def _digest(rows: Iterable[MinedRow]) -> str:
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _positives_by_query(rows: Iterable[MinedRow]) -> dict[str, frozenset[bytes]]:
    """Return digests of all positives of each query, since pairs give one query in many rows."""
    found: dict[str, set[bytes]] = {}
    for row in rows:
        found.setdefault(row.query, set()).update(*(digests(p.title, p.text) for p in row.positives))
    return {query: frozenset(digests) for query, digests in found.items()}


def _row(row: Row, number: int) -> MinedRow:
    fields = row.fields
    if not isinstance(fields.get("query"), str):
        raise RecordError(f"lacks a text 'query': has {sorted(fields)}")
    query_id = identifier("query_id", fields["query_id"]) if "query_id" in fields else str(number)
    given = fields.get("positive_passages")
    if given is None:
        single = fields.get("positive")
        given = [{"text": text} for text in (single if isinstance(single, (list, tuple)) else [single])]
    if not isinstance(given, (list, tuple)) or not given:
        raise RecordError("has no positive: give 'positive_passages', a list of {docid, title, text}, or 'positive'")
    return MinedRow(query_id, text_value("query", fields["query"]), tuple(_passage(p) for p in given))


def _passage(value: object) -> RowPassage:
    if not isinstance(value, Mapping):
        raise RecordError(f"a positive passage is {value!r}; it must be an object with a text")
    docid = value.get("docid")
    return RowPassage(
        "" if docid in (None, "") else identifier("docid", docid),
        text_value("title", value.get("title") or ""),
        text_value("text", value.get("text")),
    )
