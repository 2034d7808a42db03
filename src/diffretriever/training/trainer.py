"""RetrieverTrainer: transformers' Trainer, with our batches, our loss and our checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from diffretriever.training.batch import StepInputs
from diffretriever.training.building import BatchBuilder
from diffretriever.training.gathering import World
from diffretriever.training.module import HEAD_PARTS, RetrieverModule
from diffretriever.training.saving import load_model, save_model
from diffretriever.training.schedule import Schedule, rate
from diffretriever.training.settings import TrainingSettings
from diffretriever.training.stepping import Engine, StepReport, take_step
from diffretriever.training.store import RunFolder
from diffretriever.training.teacher import Teacher

_INPUTS = "inputs"


class StepDataset(Dataset[StepInputs]):
    """One item per optimiser step: the own inputs of the step's batch.

    Args:
        schedule: draws the examples.
        builder: makes inputs of them.
        ahead: whether the next step's are made in a thread meanwhile, which pays where another device trains.
    """

    def __init__(self, schedule: Schedule, builder: BatchBuilder, *, ahead: bool = False) -> None:
        self._schedule, self._builder = schedule, builder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead else None
        self._next: tuple[int, Future[StepInputs]] | None = None

    def __len__(self) -> int:
        return self._schedule.steps

    def __getitem__(self, step: int) -> StepInputs:
        if self._thread is None:
            return self._build(step)
        # What is on its way is awaited even where another step is asked for: schedules are not for two threads.
        made = (self._next[0], self._next[1].result()) if self._next is not None else (-1, None)
        inputs = made[1] if made[0] == step and made[1] is not None else self._build(step)
        following = step + 1
        self._next = (following, self._thread.submit(self._build, following)) if following < len(self) else None
        return inputs

    def _build(self, step: int) -> StepInputs:
        return self._builder.build(step, self._schedule.batch(step))


class RetrieverTrainer(Trainer):
    """The loop: schedule, optimiser, processes, checkpoints and logging are transformers' own.

    Args:
        settings: the run.
        module: what is trained.
        arguments: of transformers.
        data: the inputs of every step.
        folder: where checkpoints and the log go.
        teacher: the frozen encoder; None for none.
        callbacks: further callbacks.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        module: RetrieverModule,
        arguments: TrainingArguments,
        data: StepDataset,
        folder: RunFolder,
        teacher: Teacher | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(model=module, args=arguments, train_dataset=data, callbacks=callbacks)
        self.settings, self.module, self.folder, self.teacher = settings, module, folder, teacher
        self.report: StepReport | None = None
        self.seconds = 0.0

    def get_train_dataloader(self) -> DataLoader[dict[str, StepInputs]]:
        """Return the steps in order; every process makes its own part of a step's batch, so nothing is sharded."""
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)  # type: ignore[arg-type]

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, StepInputs], num_items_in_batch: object = None
    ) -> Tensor:
        """Add the gradients of one step and return its loss."""
        start = time.perf_counter()
        model.train()
        device = self.args.device
        own = inputs[_INPUTS]
        own = (self.teacher.teach(own) if self.teacher is not None and self.settings.loss.needs_teacher else own).to(
            device
        )
        engine = Engine(
            backward=self._backward,
            hold=lambda: self._hold(model),
            autocast=self.accelerator.autocast,
            world=World.here(),
        )
        one_pass = self.settings.optimisation.one_pass
        self.report = take_step(model, own, self.settings.loss, engine, one_pass=one_pass)
        self.seconds = time.perf_counter() - start
        return torch.tensor(self.report.loss, device=device)

    def _backward(self, loss: Tensor) -> None:
        # DeepSpeed would divide by the accumulation steps of its configuration, of which there are none.
        options = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(loss, **options)

    @contextmanager
    def _hold(self, model: nn.Module) -> Iterator[None]:
        """Add up gradients without a step between; sharded models exchange them every time, which needs less memory."""
        self.accelerator.gradient_state._set_sync_gradients(False)
        try:
            if self.is_fsdp_enabled:
                yield
            else:
                with self.accelerator.no_sync(model):
                    yield
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report to trackers, the parts of the latest step's loss with it."""
        if self.report is not None and "loss" in logs:
            logs |= {name: value for name, value in self.report._asdict().items() if name != "loss"}
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with rates of their own for what is learned from nothing, and no decay of vectors."""
        if self.optimizer is None:
            wanted = self.settings.optimisation
            head_rate = wanted.head_learning_rate or wanted.learning_rate
            # Vectors that start as a word of the model move as the model does: faster, they would leave its meaning.
            new_parts = HEAD_PARTS if self.settings.model.slots_start_as_a_token else (*HEAD_PARTS, "slot_embeddings")
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in (model or self.module).named_parameters():
                if parameter.requires_grad:
                    new = any(part in name for part in new_parts)
                    groups.setdefault((new, parameter.dim() > 1 and not new), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": parameters,
                        "lr": head_rate if new else wanted.learning_rate,
                        "weight_decay": wanted.weight_decay if decays else 0.0,
                    }
                    for (new, decays), parameters in groups.items()
                ],
                lr=wanted.learning_rate,
                betas=wanted.betas,
                fused=True,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ANN401
        """Return the schedule of the recipe."""
        if self.lr_scheduler is None:
            wanted = self.settings.optimisation
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.create_optimizer() if optimizer is None else optimizer,
                lambda step: rate(step, num_training_steps, wanted.warmup, wanted.schedule),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the weights as a model that `open_system` reads; DeepSpeed gives {} where it keeps them to itself."""
        if self.args.should_save and state_dict != {}:
            save_model(self.module, Path(output_dir or self.settings.output), state=state_dict)

    def finish(self) -> dict[str, Tensor] | None:
        """Go back to the best weights, where a development collection told which they are; every process must call it.

        Returns:
            The state of the module where its parameters are spread over processes, None where it has it whole.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        best = self.state.best_model_checkpoint
        if best is not None and sharded:
            self._load_best_model()
        elif best is not None:
            load_model(self.module, Path(best))
        state: dict[str, Tensor] | None = self.accelerator.get_state_dict(self.model_wrapped) if sharded else None
        return state

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ANN401
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(self.module, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.folder.mark_complete(self.state.global_step)
            self.folder.prune(self.settings.optimisation.keep, self.state.best_model_checkpoint)


def _only(items: list[StepInputs]) -> dict[str, StepInputs]:
    """Return the one item of a batch of the loader, as the mapping that transformers passes on."""
    (item,) = items
    return {_INPUTS: item}
