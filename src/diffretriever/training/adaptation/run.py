"""The run: adaptation on transformers' `Trainer`, resumable, measured before, during and after."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler, SequentialSampler

from diffretriever.backbones.hardware import device_named, warn_of_slow_bf16
from diffretriever.errors import MissingExtraError
from diffretriever.machine import Machine, versions
from diffretriever.pretrained import save_checkpoint
from diffretriever.training.adaptation.base import open_adaptable
from diffretriever.training.adaptation.objective import MaskedDiffusionModel, held_out_cross_entropy
from diffretriever.training.adaptation.results import AdaptationResults, Measurement
from diffretriever.training.adaptation.settings import AdaptationSettings
from diffretriever.training.adaptation.texts import (
    AdaptationExamples,
    PromptSlots,
    Split,
    TextWindows,
    collate_corrupted,
    read_texts,
    retriever_settings,
    split_texts,
)
from diffretriever.training.store import checkpoint_folders, only_run

try:
    import accelerate  # noqa: F401
except ImportError as error:
    raise MissingExtraError("accelerate", "train", "adapting a model") from error
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState

#: Name of the results file in the output folder.
RESULTS = "adaptation.json"


def adapt(settings: AdaptationSettings, *, device: str | None = None, progress: bool = False) -> AdaptationResults:
    """Adapt a model and return what was measured; the same call goes on after an interruption.

    The finished model is in `output/model`, the measurements in `output/adaptation.json`. Under `torchrun` each process
    takes its part of every step.

    Args:
        settings: what to compute.
        device: "cpu" to leave a GPU alone; by default the GPU if there is one.
        progress: whether to show a progress bar.

    Raises:
        CheckpointError: the base cannot be adapted, or another run is going on in the output folder.
        CorpusError: a file of texts cannot be read.
        InputError: the output folder belongs to another run, or the device is not here.
    """
    cpu = device_named(device).type == "cpu"
    with only_run(Path(settings.output)):
        return _adapt(settings, cpu=cpu, progress=progress)


def _adapt(settings: AdaptationSettings, *, cpu: bool, progress: bool) -> AdaptationResults:
    output = Path(settings.output)
    arguments = _arguments(settings, output / "checkpoints", cpu=cpu)
    if settings.bf16:
        warn_of_slow_bf16(arguments.device, "--no-bf16")
    set_seed(settings.seed)
    split = split_texts(read_texts(settings.texts), settings.held_out, settings.seed)
    results = AdaptationResults.resume(output / RESULTS, _about(settings, split))
    backbone = open_adaptable(settings.base, arguments.device)
    if settings.recompute:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model = MaskedDiffusionModel(backbone)
    windows = TextWindows(backbone.tokenizer, settings.length, backbone.position_count)
    slots = PromptSlots(backbone, settings, split.train) if settings.prompt_share else None
    size = settings.steps * settings.batch * settings.accumulate * arguments.world_size
    held_out = HeldOut(model, windows, slots, split.held_out, settings, results, output / RESULTS)
    trainer = OrderedTrainer(
        model=model,
        args=arguments,
        train_dataset=AdaptationExamples(
            split.train, windows, slots, settings, backbone.special.mask, size, backbone.spec.shift
        ),
        data_collator=lambda examples: collate_corrupted(examples, backbone.special.pad),
        callbacks=[held_out],
    )
    if not progress:
        _silence(trainer)
    trainer.train(resume_from_checkpoint=_last_checkpoint(output / "checkpoints"))
    if trainer.is_world_process_zero():
        save_checkpoint(output / "model", backbone, retriever_settings(backbone, settings), None)
    return results


class OrderedTrainer(Trainer):
    """Transformers' trainer, over examples in their own order: they are drawn already."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:  # noqa: ANN401  (its signature varies)
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class HeldOut(TrainerCallback):
    """Measures held-out cross entropy before, during and after training, and writes it down."""

    def __init__(
        self,
        model: MaskedDiffusionModel,
        windows: TextWindows,
        slots: PromptSlots | None,
        texts: Sequence[str],
        settings: AdaptationSettings,
        results: AdaptationResults,
        path: Path,
    ) -> None:
        self._model = model
        self._settings = settings
        self._results = results
        self._path = path
        rng = np.random.default_rng([settings.seed, 6])
        shown = [windows.window(text, rng) for text in texts]
        shift = model.backbone.spec.shift
        plain = [windows.ids(text) for text in shown]
        self._plain = [(ids, [p for p in places if p >= shift]) for ids, places in plain]
        self._prompted = [slots.sequence(text, "passage") for text in shown] if slots is not None else []
        self._losses: list[float] = []
        self._seen_before = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Measure the base, or forget what an interrupted run measured beyond its checkpoint."""
        self._results.since(state.global_step)
        rows = self._results.rows
        self._seen_before = rows[-1].tokens if rows else 0
        if not rows:
            self._measure(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **others: object,
    ) -> None:
        """Remember the training loss."""
        if logs is not None and "loss" in logs:
            self._losses.append(logs["loss"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Measure after every so many steps, and after the last."""
        if state.global_step % self._settings.evaluate_every == 0 or state.global_step == state.max_steps:
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        settings = self._settings
        measure = partial(held_out_cross_entropy, self._model, seed=settings.seed, bf16=settings.bf16)
        plain = measure(self._plain, settings.rates)
        prompted = measure(self._prompted, (1.0,)) if self._prompted else {}
        self._results.rows.append(
            Measurement(
                step=state.global_step,
                tokens=self._seen_before + int(self._model.tokens_seen),
                loss=sum(self._losses) / len(self._losses) if self._losses else None,
                cross_entropy=plain,
                slots=prompted.get("1"),
            )
        )
        self._losses.clear()
        if state.is_world_process_zero:
            self._results.write(self._path)


def _arguments(settings: AdaptationSettings, folder: Path, *, cpu: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(settings.warmup * settings.steps)),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        bf16=settings.bf16,
        use_cpu=cpu,
        seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=max(1, min(10, settings.evaluate_every)),
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=not cpu,
    )


def _silence(trainer: Trainer) -> None:
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint: transformers writes `trainer_state.json` last."""
    whole = {step: f for step, f in checkpoint_folders(folder).items() if (f / "trainer_state.json").is_file()}
    return str(whole[max(whole)]) if whole else None


def _about(settings: AdaptationSettings, split: Split) -> dict[str, Any]:
    """Return everything that decides the numbers, and what they were computed on; folders may move."""
    named = asdict(settings)
    places = {"texts": [str(text) for text in named.pop("texts")], "output": named.pop("output")}
    return {
        "settings": named,
        "texts": {"train": _digest(split.train), "held_out": _digest(split.held_out), "count": len(split.train)},
        "places": places,
        "versions": versions(),
        "machine": asdict(Machine.here()),
    }


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()
