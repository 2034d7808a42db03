"""Callbacks: the log of a run and its progress bar."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diffretriever.progress import Advance, progress_bar
from diffretriever.training.store import RunFolder

if TYPE_CHECKING:
    from diffretriever.training.trainer import RetrieverTrainer


class StepLog(TrainerCallback):
    """Writes the parts of every step's loss to the log, and shows how far the run is.

    Attributes:
        trainer: whose steps these are; set once it exists.

    Args:
        folder: of the run.
        progress: whether to show a bar on a terminal.
    """

    trainer: RetrieverTrainer

    def __init__(self, folder: RunFolder, *, progress: bool) -> None:
        self._folder, self._progress = folder, progress
        self._stack = ExitStack()
        self._advance: Advance = lambda count: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            bar = progress_bar("training", state.max_steps, enabled=self._progress)
            self._advance = self._stack.enter_context(bar)
            self._advance(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write one line."""
        report = self.trainer.report
        if report is None or not state.is_world_process_zero:
            return
        row: dict[str, object] = {"step": state.global_step}
        row |= {name: round(value, 4) for name, value in report._asdict().items()}
        row["learning_rate"] = self.trainer._get_learning_rate()
        row["seconds"] = round(self.trainer.seconds, 3)
        self._folder.append(row)
        self._advance(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Close the bar."""
        self._stack.close()
