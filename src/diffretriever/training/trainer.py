"""Trainer: the loop from pairs to a checkpoint, resumable at any saved step."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffretriever.errors import CheckpointError
from diffretriever.tokenizer import Tokenizer
from diffretriever.training import losses
from diffretriever.training.config import Recipe
from diffretriever.training.data import Pair, PairFile, PairSchedule
from diffretriever.training.salience import TermStatistics, is_whole_word, log_prior, salient_words
from diffretriever.training.student import SIDES, Student
from diffretriever.training.teacher import Teacher
from diffretriever.training.texts import PreparedText, TextPreparer, content_union, term_targets

log = logging.getLogger("diffretriever.training")

STATISTICS_TEXTS = 2000
"""Passages of each source that the document frequencies are counted on."""


@dataclass(frozen=True)
class StepReport:
    """The parts of one step's loss, before their factors."""

    dense: float
    sparse: float
    scores: float
    vectors: float
    words: float
    terms: float
    slot_cosine: float


class Trainer:
    """One training run.

    Args:
        recipe: what to compute.
        student: the encoder to train.
        teacher: the frozen encoder.
        tokenizer: of both.
    """

    def __init__(self, recipe: Recipe, student: Student, teacher: Teacher, tokenizer: Tokenizer) -> None:
        self.recipe = recipe
        self.student = student
        self.teacher = teacher
        self.preparer = TextPreparer(tokenizer)
        self.files = [PairFile.read(Path(recipe.data) / source.path) for source in recipe.sources]
        self.schedule = PairSchedule(recipe, self.files, self._embed)
        self.statistics, self.word_offsets = self._count_terms()
        self.optimizer = self._build_optimizer()
        self.step = 0
        self.seconds = 0.0

    def run(self, until: int | None = None) -> None:
        """Train to the recipe's last step (or to step `until`), from the newest checkpoint if there is one."""
        folder = Path(self.recipe.output)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "checkpoint.pt").is_file():
            self.restore(folder / "checkpoint.pt")
        self._trim_log(folder / "log.jsonl")
        self._describe(folder)
        last = min(until or self.recipe.steps, self.recipe.steps)
        while self.step < last:
            start = time.process_time()
            report = self.train_step()
            self.seconds += time.process_time() - start
            self._record(folder, report)
            if self.step % self.recipe.checkpoint_every == 0 or self.step == last:
                self.save(folder / "checkpoint.pt")

    def train_step(self) -> StepReport:
        """Take one optimiser step and return its losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(self.step, self.recipe.steps, self.recipe.warmup)
        loss, report = self.loss(self.schedule.batch(self.step), self._passage_tokens())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        return report

    def loss(self, pairs: Sequence[Pair], passage_tokens: int) -> tuple[Tensor, StepReport]:
        """Return the weighted sum of the objectives over one batch, and its parts."""
        queries = self.preparer.prepare([pair.query for pair in pairs], self.recipe.query_tokens)
        passages = self.preparer.prepare([pair.passage for pair in pairs], passage_tokens)
        ids = [[text.ids for text in side] for side in (queries, passages)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.recipe.bf16):
            target_q, target_p = (self.teacher.encode(side) for side in ids)
            hidden = [self.student.hidden(texts, side) for texts, side in zip(ids, SIDES, strict=True)]
            sparse, words, terms = self._vocabulary_losses(queries, passages, hidden)
        slots_q, slots_p = (torch.nn.functional.normalize(h.float(), dim=-1) for h in hidden)
        scores = losses.maxsim(slots_q, slots_p) / slots_q.shape[1]
        dense = losses.info_nce(scores, self.recipe.temperature)
        kl = losses.score_distillation(scores, target_q @ target_p.T, self.recipe.score_temperature)
        vectors = (losses.vector_alignment(slots_q, target_q) + losses.vector_alignment(slots_p, target_p)) / 2
        w = self.recipe.loss
        total = w.dense * dense + w.sparse * sparse + w.scores * kl + w.vectors * vectors + w.words * words
        total = total + w.terms * terms
        parts = (dense, sparse, kl, vectors, words, terms, _slot_cosine(slots_p))
        return total, StepReport(*(float(part.detach()) for part in parts))

    def _vocabulary_losses(
        self, queries: Sequence[PreparedText], passages: Sequence[PreparedText], hidden: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sparse, word and term losses; both sides share one product per vocabulary slice."""
        union = content_union([*queries, *passages])
        targets = [
            term_targets(texts, side, union, self.statistics, h.shape[1], self.recipe.term_scale)
            for texts, side, h in zip((queries, passages), SIDES, hidden, strict=True)
        ]
        flat = torch.cat([h.flatten(0, 1) for h in hidden])
        of_union = self.student.logits(flat, union).float()
        words = self._word_loss(self.student.logits(flat).float(), [target.words for target in targets])
        weights, terms, start = [], [], 0
        for target, h in zip(targets, hidden, strict=True):
            n, k = h.shape[:2]
            logits = of_union[start : start + n * k].view(n, k, -1)
            start += n * k
            weights.append(losses.term_weights(logits, target.own))
            terms.append(losses.term_regression(logits, target.own, target.weights))
        sparse = losses.info_nce(weights[0] @ weights[1].T, 1.0)
        return sparse, words, torch.stack(terms).mean()

    def _word_loss(self, logits: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """Return the word loss of the logits [T, V] of all slots of all texts; `wanted` holds ids [N, K] per side."""
        matched = self.step >= self.recipe.match_from
        offset = self.word_offsets[matched]
        targets, start = [], 0
        for ids in wanted:
            own = logits[start : start + ids.numel()]
            start += ids.numel()
            targets.append(losses.match_slots((own + offset).view(*ids.shape, -1), ids) if matched else ids)
        flat = torch.cat([ids.flatten() for ids in targets])
        return losses.slot_words(logits[flat != -100], flat[flat != -100], offset)

    def save(self, path: Path) -> None:
        """Write everything needed to go on, whole or not at all."""
        state = {
            "recipe": self.recipe.to_json(),
            "step": self.step,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe."""
        state = torch.load(path, weights_only=True)
        if _settings(state["recipe"]) != _settings(self.recipe.to_json()):
            raise CheckpointError(f"{path} belongs to another recipe; give a new `output` or remove it")
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])

    def _passage_tokens(self) -> int:
        lengths = self.recipe.passage_tokens
        return lengths[self.step % len(lengths)]

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.recipe.bf16):
            prepared = self.preparer.prepare(texts, self.recipe.query_tokens)
            return self.teacher.encode([text.ids for text in prepared]).numpy()

    def _count_terms(self) -> tuple[TermStatistics, tuple[Tensor, Tensor]]:
        """Return document frequencies, and the offsets [V] of the word logits before and after `match_from`."""
        sample = [p for file in self.files for p in file.passages[:: max(1, len(file.passages) // STATISTICS_TEXTS)]]
        words = [text.words for text in self.preparer.prepare(sample, self.recipe.max_passage_length)]
        statistics = TermStatistics.count(words)
        said = (salient_words(w, statistics, self.recipe.passage_slots) for w in words)
        vocabulary = self.student.backbone.vocabulary_size
        offset = self.recipe.word_prior * torch.tensor(log_prior(said, vocabulary))
        term = self.student.backbone.tokenizer.text_of
        no_word = torch.tensor([not is_whole_word(term(i)) for i in range(vocabulary)])
        return statistics, (offset, offset.masked_fill(no_word, float(offset.max())))

    def _build_optimizer(self) -> torch.optim.Optimizer:
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self.student.named_parameters():
            new = "slot_embeddings" in name or "predictions" in name
            groups.setdefault((new, parameter.dim() > 1 and not new), []).append(parameter)
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "peak": self.recipe.head_learning_rate if new else self.recipe.learning_rate,
                    "weight_decay": self.recipe.weight_decay if decays else 0.0,
                }
                for (new, decays), parameters in groups.items()
            ],
            lr=self.recipe.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

    def _record(self, folder: Path, report: StepReport) -> None:
        row = {"step": self.step, "cpu_seconds": round(self.seconds, 1)}
        row |= {name: round(value, 4) for name, value in asdict(report).items()}
        with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.step % 10 == 0:
            log.info("%s", json.dumps(row))

    def _trim_log(self, path: Path) -> None:
        """Drop the rows of steps that were taken after the last checkpoint and will be taken again."""
        if path.is_file():
            rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(r for r in rows if json.loads(r)["step"] <= self.step), encoding="utf-8")

    def _describe(self, folder: Path) -> None:
        import transformers

        about = {
            "recipe": json.loads(self.recipe.to_json()),
            "data_sha256": {s.path: f.sha256 for s, f in zip(self.recipe.sources, self.files, strict=True)},
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }
        (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _settings(recipe: str) -> dict[str, object]:
    """Return what decides the numbers of a run; folders may move between its halves."""
    return {key: value for key, value in json.loads(recipe).items() if key not in ("data", "output")}


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the peak learning rate: linear rise over `warmup * steps`, then a cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _slot_cosine(slots: Tensor) -> Tensor:
    """Return the mean cosine between different slots of one text, of unit vectors [N, K, D]."""
    k = slots.shape[1]
    total = slots.sum(dim=1).square().sum(dim=-1)
    return ((total - k) / max(1, k * (k - 1))).mean()
