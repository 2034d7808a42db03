"""Options of the commands that evaluate, each defined once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Model"


class OwnIds(str, Enum):
    """Whether a passage with the id of its query may be found."""

    AUTO = "auto"
    KEPT = "kept"
    DROPPED = "dropped"


class Repeats(str, Enum):
    """What becomes of several judgements of one pair."""

    REFUSE = "refuse"
    HIGHEST = "highest"


class TopicField(str, Enum):
    """Fields of an SGML topic."""

    TITLE = "title"
    DESC = "desc"
    NARR = "narr"


_DATA = "Collection"
Collections = Annotated[
    list[str],
    typer.Option(
        "--collection",
        "-c",
        metavar="PATH",
        help="A BEIR folder, ir_datasets:ID, scifact (bundled), or a corpus file with --topics and --qrels; "
        "may be repeated.",
        rich_help_panel=_DATA,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Split of the judgements; by default test, or the only one.", show_default=False, rich_help_panel=_DATA
    ),
]
Topics = Annotated[
    Path | None,
    typer.Option(help="Queries from this file: TSV, JSONL or TREC's SGML.", show_default=False, rich_help_panel=_DATA),
]
Qrels = Annotated[
    Path | None,
    typer.Option(
        help="Judgements from this file, in BEIR's or TREC's format.", show_default=False, rich_help_panel=_DATA
    ),
]
Modes = Annotated[
    str | None,
    typer.Option(
        metavar="M,M,...",
        help="single, multi, sparse, hybrid, hybrid-single; by default all that the system offers but the last.",
        show_default=False,
    ),
]
Measures = Annotated[
    str | None,
    typer.Option(
        metavar="M,M,...",
        help="Measures by their names in ir_measures, such as nDCG@10,RR@10,AP(rel=2); by default nDCG@10 and recall.",
        show_default=False,
    ),
]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="mini (shipped), bm25, a folder, an alias or a hub id.")]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="diffretriever, diffembed, repllama, promptreps or bm25; by default what MODEL was made for.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
K1 = Annotated[float, typer.Option("--k1", min=0.0, help="k1 of BM25.", rich_help_panel=_MODEL)]
B = Annotated[float, typer.Option("--b", min=0.0, max=1.0, help="b of BM25.", rich_help_panel=_MODEL)]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of results; each gets its own in it.")]
Field = Annotated[TopicField, typer.Option(help="Field of an SGML topic that is the query.", rich_help_panel=_DATA)]
OwnIdsOption = Annotated[
    OwnIds,
    typer.Option(
        help="Passages with the id of their query: kept, dropped, or dropped where BEIR does (ArguAna, Quora).",
        rich_help_panel=_DATA,
    ),
]
RepeatsOption = Annotated[
    Repeats,
    typer.Option(help="A pair judged more than once: refuse, or take the highest relevance.", rich_help_panel=_DATA),
]
Depth = Annotated[int, typer.Option("--k", "-k", min=1, help="Length of a ranking at most.")]
Rerank = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Re-rank this TREC run instead of searching.", show_default=False)
]
RerankDepth = Annotated[int, typer.Option(min=1, help="Passages of the run that are re-ranked per query.")]
Label = Annotated[str | None, typer.Option(help="Name of the system in tables and folders.", show_default=False)]
Encodings = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of encodings, to share them; by default OUT/encodings.", show_default=False
    ),
]
Estimate = Annotated[bool, typer.Option("--estimate", help="Show what encoding would take of time and disk, and stop.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results of another question.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
