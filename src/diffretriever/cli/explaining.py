"""The command explain: why a passage scores as it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffretriever.cli import options as opt
from diffretriever.cli.console import message, result, show
from diffretriever.cli.indexing import closing
from diffretriever.cli.models import load_recorded

if TYPE_CHECKING:
    from diffretriever.encoder import Encoder
    from diffretriever.explain import Explanation, FusedPart
    from diffretriever.fusion import FusionName
    from diffretriever.index import Index
    from diffretriever.representations import Representations


def explain(
    folder: opt.IndexFolder,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The question.")],
    passage_id: Annotated[str, typer.Argument(metavar="PASSAGE_ID", help="Id of a passage of the index.")],
    as_json: opt.AsJson = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead.", show_default=False)
    ] = None,
    words: opt.Words = 3,
    alpha: opt.Alpha = 0.5,
    fusion: opt.Fusion = opt.FusionMethod.MINMAX,
    model: opt.RecordedModel = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    prompt: opt.RecordedPrompt = None,
) -> None:
    """Show which slots of a query and a passage matched, with their words, and which terms they share."""
    from diffretriever.index import Index

    with closing(Index.open(folder)) as index:
        index.get(passage_id)  # an unknown id is said before the model is loaded
        encoder = load_recorded(index, model=model, device=device, dtype=dtype, prompt=prompt)
        encoded = encoder.encode_queries([query], words=words)
        explanation = explain_stored(index, encoder, encoded, passage_id, query=query, alpha=alpha, fusion=fusion.value)
    if html is not None:
        html.write_text(explanation.to_html(), encoding="utf-8")
        message(f"wrote {html}")
    elif as_json:
        result(explanation.to_json())
    else:
        show(explanation.to_rich())


def explain_stored(
    index: Index,
    encoder: Encoder,
    encoded: Representations,
    passage_id: str,
    *,
    query: str,
    alpha: float = 0.5,
    fusion: FusionName = "minmax",
) -> Explanation:
    """Return the explanation of a passage in an index for one encoded query, with its hybrid score if it has one."""
    from diffretriever.explain import explain as explain_scores
    from diffretriever.explain import explain_fusion

    fused: tuple[FusedPart, ...] = ()
    if index.manifest.vocabulary_size:
        dense, sparse = index.rankings(encoded)[0]
        fused = explain_fusion(passage_id, dense, sparse, method=fusion, alpha=alpha)
    stored = index.get(passage_id).representations
    return explain_scores(
        index.comparable(encoded), stored, term=encoder.term, query=query, passage_id=passage_id, fused=fused
    )
