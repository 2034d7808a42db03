"""TrainingSettings: everything that decides what a training run computes, as a recipe writes it down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from diffretriever.conventions import Side, System
from diffretriever.errors import InputError
from diffretriever.training.checks import at_least, one_of, share
from diffretriever.training.model_settings import ModelSettings

WordOrder = Literal["salience", "part"]
RowFormat = Literal["auto", "tevatron", "pairs", "text"]


@dataclass(frozen=True)
class Source:
    """One file of training texts.

    Attributes:
        path: JSONL (also .gz, .zst) or Parquet; relative to `data.folder`.
        weight: share of the batches drawn from this file; by its rows where no source has a weight.
        cloze: share of its rows whose query is a piece of the passage (1.0 where the file has no queries).
        format: "tevatron" (positive_passages, negative_passages), "pairs" (query, positive, negative), "text" (text
            alone), or "auto" to tell it from the fields.
    """

    path: str
    weight: float | None = None
    cloze: float = 0.0
    format: RowFormat = "auto"

    def __post_init__(self) -> None:
        one_of(format=(self.format, get_args(RowFormat)))
        share(cloze=self.cloze)
        if self.weight is not None and self.weight <= 0:
            raise InputError(f"weight of {self.path} is {self.weight}; it must be above 0, or leave the source out")


@dataclass(frozen=True)
class DataSettings:
    """The texts, and how batches are drawn from them.

    Attributes:
        folder: folder of the source files.
        sources: training texts; a batch comes from one of them.
        negatives: hard negatives per query, drawn from the row's own by seed, others in every epoch.
        query_tokens: longest query text in tokens; what the frame leaves by default.
        passage_tokens: longest passage text in tokens, cycled through step by step; what the frame leaves by default.
        group: rows of one batch that are chosen alike (nearest queries by the teacher); 1 = random batches.
        pool: batches whose rows are grouped together.
    """

    folder: str = "."
    sources: tuple[Source, ...] = ()
    negatives: int = 0
    query_tokens: int | None = None
    passage_tokens: tuple[int, ...] = ()
    group: int = 1
    pool: int = 32

    def __post_init__(self) -> None:
        at_least(0, negatives=self.negatives)
        at_least(1, group=self.group, pool=self.pool, **{"passage_tokens": min(self.passage_tokens, default=1)})
        if self.query_tokens is not None:
            at_least(1, query_tokens=self.query_tokens)
        if not self.sources:
            raise InputError("the recipe names no sources; list at least one file under `data.sources`")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise InputError("some sources have a weight and some have none; give it to all of them or to none")

    def text_limit(self, side: Side, step: int) -> int | None:
        """Return the longest text of a side at a step, in tokens; None for what its frame leaves."""
        if side == "query":
            return self.query_tokens
        return self.passage_tokens[step % len(self.passage_tokens)] if self.passage_tokens else None


@dataclass(frozen=True)
class LossSettings:
    """Factors of the summed objectives, 0 for none, and what shapes them; see `losses`.

    Attributes:
        dense: InfoNCE over MaxSim / K_q.
        sparse: InfoNCE over term weights.
        scores: Kullback-Leibler divergence from the teacher's scores; with vectors of parts, from their MaxSim.
        term_scores: how much of the own sparse score, per the query's product with itself, is added to the teacher's
            scores: dense vectors then learn from the terms, too.
        vectors: 1 - cos(mean slot, teacher's vector).
        parts: 1 - cos(slot k, teacher's vector of the k-th of K equal parts of the text); needs a mean-pooling teacher.
        part_scores: Kullback-Leibler divergence from how like the k-th part is to all parts by the teacher, to how like
            slot k is to them.
        words: each slot says a salient word of the text; see `words_by`.
        terms: term weights like BM25's.
        diversity: mean cosine between different slots of a text.
        denoising: masked-diffusion loss on the passages' own tokens (Sahoo et al. 2024; Nie et al. 2025).
        temperature: of the dense scores.
        sparse_temperature: of the sparse scores.
        score_temperature: of the distributions compared by `scores` and `part_scores`.
        term_scale: size of the lexical weights that the term weights learn from.
        part_share: how much of a part's target is the teacher's vector of the part; the rest is the whole text's.
        part_tokens: tokens of a passage's part at least, in the teacher's vectors; parts of short passages overlap.
        words_by: "salience": slot k says the text's k-th most salient word; "part": the most salient of its k-th part.
        word_prior: share of the words' log prior that is added to the logits in training; see `losses.slot_words`.
        word_support: how many texts of a sample must have a slot say a word for slots to say it freely; rarer ones
            start with a bias of log(count + 1) - log(word_support), as slots hardly learn when to say them. 1 for no
            such bias; needs `model.term_bias`, which keeps terms as they are.
        match_from: step from which the words of a text are matched to the slots that say them best, instead of slot k
            saying the k-th most salient (words by part are never matched), and vocabulary items that are no whole word
            are held to be as likely a priori as the most frequent word, so that the model learns not to say them.
        cross_device: whether the passages of all processes are negatives, not those of the own process alone.
        mask_duplicates: whether a passage with the text of a query's positive is left out of its negatives.
    """

    dense: float = 1.0
    sparse: float = 1.0
    scores: float = 0.0
    term_scores: float = 0.0
    vectors: float = 0.0
    parts: float = 0.0
    part_scores: float = 0.0
    words: float = 0.0
    terms: float = 0.0
    diversity: float = 0.0
    denoising: float = 0.0
    temperature: float = 0.01
    sparse_temperature: float = 1.0
    score_temperature: float = 0.05
    term_scale: float = 0.7
    part_share: float = 0.75
    part_tokens: int = 0
    words_by: WordOrder = "salience"
    word_prior: float = 0.5
    word_support: int = 1
    match_from: int = 0
    cross_device: bool = True
    mask_duplicates: bool = True

    def __post_init__(self) -> None:
        for name in ("temperature", "sparse_temperature", "score_temperature"):
            if getattr(self, name) <= 0:
                raise InputError(f"loss.{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.part_share <= 1:
            raise InputError(f"loss.part_share is {self.part_share}; it must be between 0 and 1")
        one_of(words_by=(self.words_by, get_args(WordOrder)))
        at_least(1, word_support=self.word_support)
        at_least(0, part_tokens=self.part_tokens)
        if self.term_scores and not (self.scores and (self.sparse or self.terms)):
            raise InputError("loss.term_scores adds to the teacher's scores; set loss.scores, and loss.sparse or terms")

    @property
    def needs_teacher(self) -> bool:
        """Whether an objective compares with a teacher."""
        return bool(self.scores or self.vectors or self.needs_parts)

    @property
    def needs_parts(self) -> bool:
        """Whether an objective compares slots with the teacher's vectors of the parts of a text."""
        return bool(self.parts or self.part_scores)

    @property
    def needs_head(self) -> bool:
        """Whether an objective reads the vocabulary head."""
        return bool(self.sparse or self.words or self.terms or self.denoising)

    @property
    def needs_statistics(self) -> bool:
        """Whether an objective reads how frequent words are in the training texts."""
        return bool(self.words or self.terms)


@dataclass(frozen=True)
class OptimisationSettings:
    """How the weights move.

    Attributes:
        steps: optimiser steps; None to go by `epochs`.
        epochs: passes over the rows, where `steps` is None.
        batch: queries per step, over all processes; every passage of the batch is a negative of the other queries.
        chunk: texts per forward pass; short chunks of similar length waste less padding.
        one_pass: whether the activations of all chunks are kept until the backward pass, which is faster; else
            every chunk is computed twice and memory is that of one chunk (GradCache, Gao et al. 2021).
        learning_rate: peak rate.
        head_learning_rate: peak rate of slot embeddings and vocabulary head; `learning_rate` by default.
        schedule: fall of the rate after warm-up, "cosine" or "linear".
        warmup: share of the steps in which the rate rises.
        weight_decay: of all matrices but those of the head.
        betas: of AdamW.
        clip: largest gradient norm.
        bf16: autocast the forward pass.
        gradient_checkpointing: whether layers are computed again in the backward pass, to save memory.
        save_every: steps between checkpoints.
        keep: newest checkpoints to keep, beside the best.
    """

    steps: int | None = None
    epochs: float = 1.0
    batch: int = 128
    chunk: int = 16
    one_pass: bool = True
    learning_rate: float = 1e-4
    head_learning_rate: float | None = None
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup: float = 0.06
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    bf16: bool = True
    gradient_checkpointing: bool = False
    save_every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        at_least(1, batch=self.batch, chunk=self.chunk, save_every=self.save_every, keep=self.keep)
        if self.steps is not None:
            at_least(1, steps=self.steps)
        one_of(schedule=(self.schedule, ("cosine", "linear")))
        share(warmup=self.warmup)
        if self.epochs <= 0:
            raise InputError(f"optimisation.epochs is {self.epochs}; it must be above 0")


@dataclass(frozen=True)
class EvaluationSettings:
    """Retrieval on a development collection while training, and when to stop.

    Attributes:
        collection: folder of the collection, in BEIR's layout.
        every: steps between evaluations.
        measure: what counts, as ir_measures names it.
        mode: "multi_dense", "single_dense", "sparse" or "fusion".
        queries: queries taken from it, the first ones; None for all.
        passages: passages taken: all relevant ones and the first others; None for all.
        patience: evaluations without a better value after which training stops; None to go on to the end.
    """

    collection: str
    every: int = 100
    measure: str = "nDCG@10"
    mode: str = "multi_dense"
    queries: int | None = None
    passages: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        at_least(1, every=self.every)


@dataclass(frozen=True)
class TeacherSettings:
    """The frozen encoder that distillation compares with and that groups alike pairs.

    Attributes:
        base: what `open_system` takes: "minilm", a folder, an alias or a hub id.
        system: how it is read; None for the one it was tuned as.
        chunk: texts per forward pass.
        rarity: a token counts idf^rarity in the means over a text and its parts, by the training texts; 0 for plain
            means. Needs a mean-pooling teacher.
    """

    base: str = "minilm"
    system: System | None = None
    chunk: int = 16
    rarity: float = 0.0

    def __post_init__(self) -> None:
        if self.rarity < 0:
            raise InputError(f"teacher.rarity is {self.rarity}; it must be 0 or above")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one run.

    Attributes:
        data: the texts.
        output: folder for checkpoints, log and the finished model.
        seed: decides every draw.
        model: what is trained.
        loss: the objectives.
        optimisation: how the weights move.
        evaluation: a development collection; None for no evaluation.
        teacher: the frozen encoder; None for none.
        trainer: further arguments of transformers' `TrainingArguments`, such as fsdp, deepspeed or report_to.
    """

    data: DataSettings
    output: str = "runs/model"
    seed: int = 1
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimisation: OptimisationSettings = field(default_factory=OptimisationSettings)
    evaluation: EvaluationSettings | None = None
    teacher: TeacherSettings | None = None
    trainer: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimisation.batch % self.data.group:
            raise InputError(
                f"optimisation.batch must be a multiple of data.group, got {self.optimisation.batch} and "
                f"{self.data.group}"
            )
        if self.teacher is None and (self.loss.needs_teacher or self.data.group > 1):
            raise InputError("loss.scores, loss.vectors and data.group > 1 need a teacher; name one under `teacher`")
        if self.model.term_bias and not (self.loss.sparse or self.loss.terms):
            raise InputError("model.term_bias is on and no objective reads term weights; set loss.sparse or loss.terms")
        if self.loss.word_support > 1 and not self.model.term_bias:
            raise InputError("loss.word_support lowers the bias of words and terms alike; set model.term_bias, too")
        if self.loss.needs_head and self.model.system in ("diffembed", "repllama"):
            raise InputError(
                f"{self.model.system} reads no vocabulary head; set loss.sparse, loss.words, loss.terms and "
                "loss.denoising to 0"
            )

    def to_json(self) -> str:
        """Return the settings as JSON, one a line."""
        return json.dumps(asdict(self), indent=1)
