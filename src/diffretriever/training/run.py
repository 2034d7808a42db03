"""Run: a recipe from its texts to a finished model, going on where an interrupted run left off."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from diffretriever.backbones.hardware import warn_of_slow_bf16
from diffretriever.errors import InputError, MissingExtraError
from diffretriever.systems.promptreps import PromptReps
from diffretriever.training.base import open_base, recompute_layers
from diffretriever.training.building import BatchBuilder
from diffretriever.training.callbacks import StepLog
from diffretriever.training.card import write_card
from diffretriever.training.dev import DevEvaluation
from diffretriever.training.gathering import World
from diffretriever.training.lora import add_lora, check_lora_base
from diffretriever.training.module import RetrieverModule, build_module, text_room
from diffretriever.training.rows import RowFile, open_rows
from diffretriever.training.saving import save_model
from diffretriever.training.schedule import Schedule
from diffretriever.training.settings import LossSettings, TrainingSettings
from diffretriever.training.store import RunFolder, only_run
from diffretriever.training.teacher import Teacher
from diffretriever.training.texts import TextPreparer
from diffretriever.training.trainer import RetrieverTrainer, StepDataset
from diffretriever.training.vocabulary import WordTargets, sampled_passages

log = logging.getLogger("diffretriever.training")

#: Arguments of transformers that the recipe decides elsewhere.
_OURS = (
    "output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "weight_decay", "max_grad_norm", "bf16", "seed", "save_strategy", "save_steps", "save_total_limit",
    "gradient_checkpointing", "lr_scheduler_type", "warmup_steps",
)  # fmt: skip


def train(settings: TrainingSettings, *, progress: bool = False) -> Path:
    """Train to the last step, from the newest checkpoint if there is one, and return the finished model's folder.

    Args:
        settings: the run.
        progress: whether to show a progress bar on a terminal.

    Raises:
        InputError: the settings do not fit each other or the machine.
        CorpusError: a file of texts cannot be used.
        CheckpointError: the base or the teacher cannot be read; the folder belongs to another run, or one is going on
            in it.
        MissingExtraError: the extra `train` is not installed.
    """
    with only_run(Path(settings.output)):
        model = _train(settings, progress=progress)
    # A trainer and its callbacks hold each other, and with them model and optimiser, which a next run has no room for.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model


def _train(settings: TrainingSettings, *, progress: bool) -> Path:
    trainer, about = prepare(settings, progress=progress)
    folder = trainer.folder
    newest = folder.newest()
    trainer.train(resume_from_checkpoint=None if newest is None else str(folder.checkpoint(newest)))
    state = trainer.finish()
    if trainer.args.should_save:
        half = torch.float16 if trainer.module.backbone.dtype == torch.float32 else None
        merge = settings.model.lora is not None and settings.model.lora.merge
        save_model(trainer.module, folder.model, about, half, merge=merge, state=state)
        write_card(folder, about)
    trainer.accelerator.wait_for_everyone()
    return folder.model


def prepare(settings: TrainingSettings, *, progress: bool = False) -> tuple[RetrieverTrainer, dict[str, object]]:
    """Return the trainer of a run, ready to start or to go on, and the facts of the run."""
    arguments = _arguments(settings)
    device = arguments.device  # asking for it starts the other processes' side of the connection
    if arguments.n_gpu > 1:
        # One process would split every chunk over all of them, which is slower than a process for each.
        log.warning("%d GPUs are here and one is used; start with torchrun --nproc-per-node for all", arguments.n_gpu)
        arguments._n_gpu = 1
    if settings.optimisation.bf16:
        warn_of_slow_bf16(device, "optimisation.bf16=false")
    world = World.here()
    if settings.optimisation.batch % (world.size * settings.data.group):
        raise InputError(
            f"optimisation.batch is {settings.optimisation.batch}; {world.size} processes with groups of "
            f"{settings.data.group} need a multiple of {world.size * settings.data.group}"
        )
    set_seed(settings.seed)
    base = open_base(settings.model, device, bf16=settings.optimisation.bf16)
    if settings.model.lora is not None:
        check_lora_base(settings.model.base, merged=settings.model.lora.merge, headless=not base.backbone.fingerprint)
        add_lora(base.backbone, settings.model.lora, settings.model.base)
    new_bias = settings.model.term_bias and base.backbone.term_bias is None
    module = build_module(base, settings.model, settings.seed)
    _check_slot_losses(settings.loss, module)
    if not settings.loss.needs_head:
        module.freeze_head()
    if settings.optimisation.gradient_checkpointing:
        recompute_layers(base.backbone)
    paths = [(Path(settings.data.folder) / s.path, s.format) for s in settings.data.sources]
    files = [open_rows(path, form, progress=progress and world.rank == 0) for path, form in paths]
    teacher = _teacher(settings, device, module, files)
    embed = None if teacher is None else lambda texts: teacher.encode(texts, "query")[0].cpu().numpy()
    schedule = Schedule(settings, files, embed, world.agreed)
    targets = _word_targets(settings, module, files)
    if settings.model.term_counts and targets is not None and module.encoder.mean_words is None:
        module.encoder.count_terms(round(targets.statistics.mean_length, 1))
    if new_bias and targets is not None:
        targets.start(module.backbone, settings.loss.term_scale)
    builder = BatchBuilder(settings, module, world, targets)
    folder = RunFolder(Path(settings.output))
    about: dict[str, object] = {}
    if arguments.should_save:
        folder.remove_broken()
        digests = {s.path: f.sha256 for s, f in zip(settings.data.sources, files, strict=True)}
        about = folder.describe(settings, digests, base.fingerprint, schedule.steps)
        folder.trim_log(folder.newest() or 0)
    arguments.max_steps = schedule.steps
    steps = StepLog(folder, progress=progress)
    # Processes that agree on groups speak to each other while a batch is made, which must not be in two threads.
    ahead = device.type == "cuda" and (world.size == 1 or settings.data.group == 1)
    data = StepDataset(schedule, builder, ahead=ahead)
    trainer = RetrieverTrainer(
        settings, module, arguments, data, folder, teacher, [steps, *callbacks(settings, module)]
    )
    steps.trainer = trainer
    _refuse_shards(settings, trainer)
    trainer.remove_callback(PrinterCallback)
    return trainer, about


def _check_slot_losses(loss: LossSettings, module: RetrieverModule) -> None:
    """Raise InputError where an objective asks something of every slot, and slots are what an answer decodes."""
    if not isinstance(module.encoder, PromptReps) or max(module.encoder.answer_lengths.values()) == 1:
        return
    for name in ("parts", "part_scores", "words", "diversity"):
        if value := getattr(loss, name):
            raise InputError(
                f"loss.{name} is {value} and asks something of every slot, but an answer of promptreps may end before; "
                "set it to 0, or model.query_slots and model.passage_slots to 1"
            )


def _refuse_shards(settings: TrainingSettings, trainer: RetrieverTrainer) -> None:
    """Raise InputError where a process should evaluate and none holds all weights.

    Whoever asked for that, the recipe or accelerate's own settings: the others would wait for ever.
    """
    plugin = trainer.accelerator.state.deepspeed_plugin
    shards = trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
    if settings.evaluation is not None and shards:
        raise InputError("evaluation while training goes with no weights in shards (FSDP, ZeRO 3); evaluate afterwards")


def callbacks(settings: TrainingSettings, module: RetrieverModule) -> list[TrainerCallback]:
    """Return the further callbacks that a recipe asks for."""
    if settings.evaluation is None:
        return []
    bf16 = settings.optimisation.bf16
    return [DevEvaluation(settings.evaluation, module, Path(settings.output), bf16=bf16)]


def _arguments(settings: TrainingSettings) -> TrainingArguments:
    if taken := sorted(set(settings.trainer) & set(_OURS)):
        raise InputError(f"`trainer` sets {taken[0]}, which the recipe decides elsewhere; see `optimisation`")
    wanted = settings.optimisation
    values: dict[str, object] = {
        "output_dir": settings.output,
        "per_device_train_batch_size": 1,
        "max_grad_norm": wanted.clip,
        "bf16": wanted.bf16,
        "seed": settings.seed,
        "save_strategy": "steps",
        "save_steps": wanted.save_every,
        "save_total_limit": None,
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
        **settings.trainer,
    }
    try:
        return TrainingArguments(**values)  # type: ignore[arg-type]
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "training") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"transformers refuses the arguments of the run: {error}") from error


def _teacher(
    settings: TrainingSettings, device: torch.device, module: RetrieverModule, files: Sequence[RowFile]
) -> Teacher | None:
    if settings.teacher is None:
        return None
    slots = {side: frame.slots for side, frame in module.encoder.frames.items()}
    teacher = Teacher.open(
        settings.teacher,
        device,
        bf16=settings.optimisation.bf16,
        parts=slots if settings.loss.needs_parts else None,
        part_share=settings.loss.part_share,
        part_tokens=settings.loss.part_tokens,
    )
    if (settings.loss.vectors or settings.loss.needs_parts) and teacher.dim != module.encoder.dim:
        raise InputError(
            f"loss.vectors, parts and part_scores compare vectors; the teacher's have {teacher.dim} dimensions and the "
            f"model's {module.encoder.dim}; set them to 0"
        )
    if settings.teacher.rarity:
        teacher.weigh_tokens(sampled_passages(files), settings.teacher.rarity)
    return teacher


def _word_targets(settings: TrainingSettings, module: RetrieverModule, files: Sequence[RowFile]) -> WordTargets | None:
    if not (settings.loss.needs_statistics or settings.model.term_bias or settings.model.term_counts):
        return None
    room = text_room(module, "passage", None)
    prepared = TextPreparer(module.encoder).prepare(sampled_passages(files), "passage", room)
    slots = module.encoder.frames["passage"].slots
    return WordTargets.count(prepared, module.backbone, slots, settings.loss.word_prior, settings.loss.word_support)
