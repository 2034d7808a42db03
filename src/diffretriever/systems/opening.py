"""Opening: any system over any checkpoint, by name."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from typing_extensions import Unpack

from diffretriever.conventions import System
from diffretriever.errors import InputError
from diffretriever.pretrained import BackboneOptions, open_checkpoint
from diffretriever.prompted import PromptedEncoder
from diffretriever.retriever import DiffRetriever
from diffretriever.systems.diffembed import DiffEmbed
from diffretriever.systems.promptreps import PromptReps
from diffretriever.systems.repllama import RepLLaMA

_OTHERS: dict[str, type[DiffEmbed] | type[RepLLaMA] | type[PromptReps]] = {
    cls.system: cls for cls in (DiffEmbed, RepLLaMA, PromptReps)
}


class SystemOptions(BackboneOptions, total=False):
    """How a system reads its backbone, and how the backbone is loaded; None is what the checkpoint records.

    Attributes:
        query_slots: K_q, vectors of a query.
        passage_slots: K_p, vectors of a passage.
        prompt: name of a template or path of a JSON file.
        protocol: "default" or "paper".
        readout: "slot" or "aligned"; DiffRetriever only.
        steps: denoising steps S; DiffRetriever only.
        max_query_length: longest query in tokens.
        max_passage_length: longest passage in tokens.
        batch_tokens: tokens per forward pass.
    """

    query_slots: int | None
    passage_slots: int | None
    prompt: str | Path | None
    protocol: str | None
    readout: str | None
    steps: int | None
    max_query_length: int | None
    max_passage_length: int | None
    batch_tokens: int | None


def open_system(
    name_or_path: str | Path = "mini", system: System | None = None, **options: Unpack[SystemOptions]
) -> PromptedEncoder:
    """Return a system over a checkpoint.

    Example:
        >>> from diffretriever import open_system
        >>> open_system("mini", "diffembed").encode_queries(["what causes the seasons?"]).vectors(0).shape
        (1, 384)

    Args:
        name_or_path: what `DiffRetriever.from_pretrained` takes.
        system: "diffretriever", "diffembed", "repllama" or "promptreps"; by default the one that the checkpoint was
            tuned as, and for an untuned one "promptreps" if it is causal, else "diffretriever".
        options: how the system reads the backbone and how that is loaded.

    Raises:
        CheckpointError: files are missing, foreign or do not fit, or the system cannot read this backbone.
        InputError: an option is out of range or of another system.
    """
    known = get_args(System)
    if system is not None and system not in known:
        raise InputError(f"no system {system!r}; choose one of {', '.join(known)}")
    loading = {k: v for k, v in options.items() if k in BackboneOptions.__annotations__}
    prompt, batch_tokens = options.get("prompt"), options.get("batch_tokens")
    reading = {k: v for k, v in options.items() if k not in (*loading, "prompt", "batch_tokens")}
    given = {**reading, "prompt": None if prompt is None else str(prompt), "system": system}
    checkpoint = open_checkpoint(name_or_path, given, **cast(BackboneOptions, loading))
    backbone, settings, name = checkpoint.backbone, checkpoint.settings, str(name_or_path)
    usual: System = "promptreps" if backbone.spec.attention == "causal" else "diffretriever"
    chosen = settings.system or usual
    if chosen == "diffretriever":
        slots = checkpoint.slot_embeddings
        return DiffRetriever(backbone, settings, name=name, slot_embeddings=slots, batch_tokens=batch_tokens)
    return _OTHERS[chosen](backbone, settings, name=name, batch_tokens=batch_tokens)
