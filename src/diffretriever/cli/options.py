"""Options: those that several commands share, each defined once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Mode(str, Enum):
    """Which scores rank the passages."""

    HYBRID = "hybrid"
    MULTI = "multi"
    SINGLE = "single"
    SPARSE = "sparse"


class System(str, Enum):
    """What reads a backbone; see docs/systems.md."""

    DIFFRETRIEVER = "diffretriever"
    DIFFEMBED = "diffembed"
    REPLLAMA = "repllama"
    PROMPTREPS = "promptreps"


class IdfSource(str, Enum):
    """Whose idf the term weights of queries have."""

    COLLECTION = "collection"
    MODEL = "model"


class FusionMethod(str, Enum):
    """How hybrid search joins the dense and the sparse ranking."""

    MINMAX = "minmax"
    RRF = "rrf"


class StorageDtype(str, Enum):
    """Numbers that vectors are stored as."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


class CodesDtype(str, Enum):
    """Codes that choose candidates."""

    INT8 = "int8"
    BINARY = "binary"


class OnError(str, Enum):
    """What to do with a bad line of the input."""

    RAISE = "raise"
    REPORT = "report"


class FileFormat(str, Enum):
    """Formats of a corpus."""

    JSONL = "jsonl"
    TSV = "tsv"
    CSV = "csv"
    PARQUET = "parquet"
    BEIR = "beir"
    TEXT = "text"


_MODEL = "Model"
_SEARCH = "Search"

Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="JSONL, TSV or CSV (also .gz, .zst), Parquet, a BEIR folder, a folder of .txt and .md files, or - for "
        "JSONL on standard input.",
    ),
]
IndexFolder = Annotated[
    str, typer.Argument(metavar="DIR", help="Folder of the index, or its address, such as qdrant://host:6333/name.")
]
Format = Annotated[
    FileFormat | None,
    typer.Option("--format", help="Format of INPUT, when its name does not tell.", show_default=False),
]
BadLines = Annotated[
    OnError,
    typer.Option("--on-error", help="Stop at the first bad line, or go on and report all of them at the end (exit 1)."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Passages encoded and stored at a time; by default as many as take a few seconds.",
        show_default=False,
    ),
]
_STORAGE = "Storage"
StorageOption = Annotated[
    StorageDtype,
    typer.Option(
        "--storage",
        help="Numbers that vectors are kept as; int8 and binary, coarse, with --backend exact.",
        rich_help_panel=_STORAGE,
    ),
]
CodesOption = Annotated[
    CodesDtype | None,
    typer.Option(
        "--codes",
        help="Codes held in memory beside the vectors: they choose candidates for the vectors left on disk.",
        show_default=False,
        rich_help_panel=_STORAGE,
    ),
]
Pca = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Keep so many principal components of each vector.",
        show_default=False,
        rich_help_panel=_STORAGE,
    ),
]
Drop = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Leave out slots whose cosine to an earlier one of the passage is greater than this.",
        show_default=False,
        rich_help_panel=_STORAGE,
    ),
]
Durable = Annotated[
    bool,
    typer.Option(
        "--durable",
        help="Have every batch on disk before the next: to survive a power cut, not only a killed process.",
    ),
]
Words = Annotated[int, typer.Option(min=0, max=100, help="Predicted words kept per slot; 0 is faster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

DefaultModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="mini (shipped), a folder, a GGUF file, smollm2 or minilm (from packages), or a hub id such as "
        "Dream-org/Dream-v0-Instruct-7B.",
        rich_help_panel=_MODEL,
    ),
]
RecordedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Where the model is now, if it moved since the index was made.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1 ...; by default the first GPU.", show_default=False, rich_help_panel=_MODEL),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="D,D,...",
        help="Several devices, a process each, such as cuda:0,cuda:1; all for every GPU.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32 or bfloat16; by default bfloat16 where the hardware is faster in it, else float32; or float8 "
        "weights (GPUs since Ada and Hopper).",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens per forward pass.", show_default=False, rich_help_panel=_MODEL),
]
SystemOption = Annotated[
    System | None,
    typer.Option(
        "--system",
        help="What reads the model; by default what it was tuned as, else promptreps for a causal model and "
        "diffretriever for others.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
QuerySlots = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Vectors of a query (K_q).",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
PassageSlots = Annotated[
    int | None,
    typer.Option(min=1, help="Vectors of a passage (K_p).", show_default=False, rich_help_panel=_MODEL),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt", help="Name of a prompt template, or a JSON file.", show_default=False, rich_help_panel=_MODEL
    ),
]
RecordedPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", help="The prompt, if the index does not remember it.", show_default=False, rich_help_panel=_MODEL
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option("--protocol", help="default or paper.", show_default=False, rich_help_panel=_MODEL),
]
ReadoutOption = Annotated[
    str | None,
    typer.Option("--readout", help="slot or aligned.", show_default=False, rich_help_panel=_MODEL),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Denoising steps.", show_default=False, rich_help_panel=_MODEL),
]

MaxQueryLength = Annotated[
    int | None,
    typer.Option(min=1, help="Longest query in tokens.", show_default=False, rich_help_panel=_MODEL),
]
MaxPassageLength = Annotated[
    int | None,
    typer.Option(min=1, help="Longest passage in tokens.", show_default=False, rich_help_panel=_MODEL),
]

ModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        help="hybrid (MaxSim and terms fused), multi (MaxSim), single (pooled vectors), sparse; by default hybrid, or "
        "multi where the index holds no terms.",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
Alpha = Annotated[
    float,
    typer.Option(
        min=0.0, max=1.0, help="Weight of MaxSim in hybrid search; the terms get the rest.", rich_help_panel=_SEARCH
    ),
]
Fusion = Annotated[
    FusionMethod,
    typer.Option(help="minmax (interpolation by alpha) or rrf (reciprocal ranks).", rich_help_panel=_SEARCH),
]
IdfOption = Annotated[
    IdfSource,
    typer.Option(
        "--idf",
        help="How rare terms are: half by the collection, where the model says what it assumes, or by the model alone.",
        rich_help_panel=_SEARCH,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        help="Only passages whose metadata meet this, such as 'year>=2020 and (lang=en or not tag in a,b)'; may be "
        "repeated.",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
Exact = Annotated[
    bool | None,
    typer.Option(
        "--exact/--approximate",
        help="Compare with every passage, or not; by default as the size commands.",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
WantedRecall = Annotated[
    float,
    typer.Option(
        "--recall",
        min=0.01,
        max=1.0,
        help="Share of the truly best passages that an approximate search should find.",
        rich_help_panel=_SEARCH,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the new index.", show_default=False)]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="Show what the index would need of disk, memory and time, and write nothing.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an index that is already there.")]
