"""Dev: retrieval on a development collection while training; the best checkpoint, and when to stop."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diffretriever.corpus import Passage, Query
from diffretriever.errors import InputError
from diffretriever.evaluation.collections import Collection, open_collection
from diffretriever.evaluation.measures import evaluate, parse_measures
from diffretriever.evaluation.qrels import Qrel
from diffretriever.evaluation.runs import Run, ScoredPassage
from diffretriever.fusion import DEPTH, Ranking, fuse
from diffretriever.json_files import write_json
from diffretriever.representations import Representations
from diffretriever.scoring import best_passages
from diffretriever.training.gathering import World
from diffretriever.training.module import RetrieverModule
from diffretriever.training.settings import EvaluationSettings

#: Name of the file of scores in a run's folder.
DEV_SCORES = "dev.json"
_MODES = {"multi_dense": "multi", "single_dense": "single", "sparse": "sparse", "fusion": "fusion"}


@dataclass(frozen=True)
class DevCollection:
    """A development collection in memory, or a part of one.

    Attributes:
        passages: every judged passage of the queries, and others.
        queries: the queries.
        qrels: their judgements.
    """

    passages: Sequence[Passage]
    queries: Sequence[Query]
    qrels: Sequence[Qrel]

    @staticmethod
    def of(collection: Collection, queries: int | None = None, passages: int | None = None) -> DevCollection:
        """Return the first queries of a collection with all passages judged for them and the first others.

        A measure on a part of the passages is higher than on all of them; it serves to compare checkpoints.

        Args:
            collection: the collection.
            queries: how many queries; None for all.
            passages: how many passages, if no more are judged; None for all.
        """
        asked = list(islice(collection.queries, queries))
        ids = {query.query_id for query in asked}
        qrels = [qrel for qrel in collection.qrels if qrel.query_id in ids]
        judged = {qrel.passage_id for qrel in qrels}
        room = math.inf if passages is None else max(0, passages - len(judged))
        kept: list[Passage] = []
        for passage in collection.passages:
            if passage.passage_id in judged or room > 0:
                room -= passage.passage_id not in judged
                kept.append(passage)
        return DevCollection(kept, asked, qrels)


@dataclass(frozen=True)
class DevScore:
    """The value of the measure after some steps."""

    step: int
    value: float


class DevEvaluation(TrainerCallback):
    """Measures the model each so many steps, has the best checkpoint kept, and stops when it gets no better.

    The first process encodes and measures, the others wait; scores are in `dev.json`.

    Args:
        settings: collection, measure and patience.
        module: what is trained.
        folder: of the run.
        bf16: whether the forward pass is in bf16.
    """

    def __init__(self, settings: EvaluationSettings, module: RetrieverModule, folder: Path, *, bf16: bool) -> None:
        if settings.mode not in _MODES:
            raise InputError(f"evaluation.mode is {settings.mode!r}; choose one of {', '.join(_MODES)}")
        parse_measures([settings.measure])
        self._settings, self._module, self._bf16 = settings, module, bf16
        self._path = folder / DEV_SCORES
        collection = open_collection(settings.collection)
        self._collection = DevCollection.of(collection, settings.queries, settings.passages)
        self.scores = read_scores(self._path)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Forget scores of steps that will be taken again; measure the base."""
        self.scores = [score for score in self.scores if score.step <= state.global_step]
        if not self.scores:
            self._measure(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure, and say whether to save and whether to stop."""
        if state.global_step % self._settings.every and state.global_step != state.max_steps:
            return
        best_before = max((s.value for s in self.scores if s.step), default=-math.inf)
        value = self._measure(state)
        if value > best_before:
            state.best_metric, state.best_global_step = value, state.global_step
            control.should_save = True
        waited = sum(score.step > (state.best_global_step or 0) for score in self.scores)
        if self._settings.patience is not None and waited >= self._settings.patience:
            control.should_save = control.should_training_stop = True

    def _measure(self, state: TrainerState) -> float:
        values = [0.0]
        if World.here().rank == 0:
            value = dev_value(self._module, self._collection, self._settings, bf16=self._bf16)
            values = [value]
        if World.here().size > 1:
            torch.distributed.broadcast_object_list(values)
        self.scores.append(DevScore(state.global_step, values[0]))
        if state.is_world_process_zero:
            about = {"settings": asdict(self._settings), "passages": len(self._collection.passages)}
            rows = [asdict(score) for score in self.scores]
            write_json(self._path, {**about, "queries": len(self._collection.queries), "scores": rows})
        return values[0]


def read_scores(path: Path) -> list[DevScore]:
    """Return the scores of a run's file; none where there is no file."""
    if not path.is_file():
        return []
    return [DevScore(**score) for score in json.loads(path.read_text(encoding="utf-8"))["scores"]]


def dev_value(
    module: RetrieverModule, collection: DevCollection, settings: EvaluationSettings, *, bf16: bool = False
) -> float:
    """Return the mean of the measure that a module as it is reaches on a collection."""
    was_training = module.training
    module.eval()
    slots = module.slot_embeddings
    module.encoder.slot_embeddings = None if slots is None else slots.detach()
    device = module.encoder.backbone.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        queries = module.encoder.encode_queries([query.text for query in collection.queries])
        passages = module.encoder.encode_passages(list(collection.passages))
    module.train(was_training)
    found = rankings(queries, passages, [p.passage_id for p in collection.passages], settings.mode, device)
    return measured(found, collection, settings.measure)


def measured(found: Sequence[Ranking], collection: DevCollection, measure: str) -> float:
    """Return the mean of a measure over the rankings of a collection's queries."""
    scored = [[ScoredPassage(i, s) for i, s in zip(r.passage_ids, r.scores.tolist(), strict=True)] for r in found]
    run = Run.of([query.query_id for query in collection.queries], scored)
    return evaluate(run, collection.qrels, [measure])[measure]


def rankings(
    queries: Representations, passages: Representations, ids: Sequence[str], mode: str, device: torch.device
) -> list[Ranking]:
    """Return the passages of each query, best first, at most `fusion.DEPTH`.

    Args:
        queries: of all queries.
        passages: of all passages.
        ids: the passages' ids.
        mode: "multi_dense", "single_dense", "sparse" or "fusion".
        device: where to compute the scores.
    """
    if mode == "fusion":
        sides = [rankings(queries, passages, ids, side, device) for side in ("multi_dense", "sparse")]
        return [fuse(dense, sparse) for dense, sparse in zip(*sides, strict=True)]
    best = best_passages(queries, passages, min(DEPTH, len(ids)), _MODES[mode], device=device)  # type: ignore[arg-type]
    rows = zip(best.scores.cpu().double().numpy(), best.positions.tolist(), strict=True)
    return [Ranking.sort([ids[p] for p in positions], scores) for scores, positions in rows]
