"""Models: which encoder a command works with, and how an index remembers it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from diffretriever.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from diffretriever.conventions import System
    from diffretriever.index import Index
    from diffretriever.prompted import PromptedEncoder
    from diffretriever.systems.parallel import ParallelEncoder

    OpenedEncoder = PromptedEncoder | ParallelEncoder


@dataclass(frozen=True)
class ModelOptions:
    """The options that choose an encoder; what is None is the checkpoint's own."""

    model: str
    device: str | None = None
    dtype: str | None = None
    batch_tokens: int | None = None
    query_slots: int | None = None
    passage_slots: int | None = None
    prompt: str | None = None
    protocol: str | None = None
    readout: str | None = None
    steps: int | None = None
    system: str | None = None
    max_query_length: int | None = None
    max_passage_length: int | None = None
    devices: str | None = None

    def load(self) -> OpenedEncoder:
        """Return the encoder; one process per device where several are named.

        Raises:
            CheckpointError: the model cannot be found or loaded.
            InputError: an option is out of range, or the system has no representations.
            WorkerError: a process of several ended.
        """
        import torch

        from diffretriever.backbones.hardware import usable_threads
        from diffretriever.systems.opening import SystemOptions, open_system
        from diffretriever.systems.parallel import ParallelEncoder, devices_named

        torch.set_num_threads(usable_threads())
        if self.model == "bm25":
            raise InputError("bm25 ranks by words and has no representations to keep; `evaluate` takes it")
        if self.device and self.devices:
            raise InputError(f"--device {self.device} and --devices {self.devices} say different things; give one")
        devices = devices_named(self.devices) if self.devices else []
        # An index is searched from other folders too, so a local model is remembered by its whole path.
        local = self.model != "mini" and Path(self.model).exists()
        name = str(Path(self.model).resolve()) if local else self.model
        system = cast("System | None", self.system)
        options: SystemOptions = {
            "query_slots": self.query_slots,
            "passage_slots": self.passage_slots,
            "prompt": self.prompt,
            "protocol": self.protocol,
            "readout": self.readout,
            "steps": self.steps,
            "max_query_length": self.max_query_length,
            "max_passage_length": self.max_passage_length,
            "dtype": self.dtype,
            "batch_tokens": self.batch_tokens,
        }
        if len(devices) > 1:
            return ParallelEncoder(name, system, devices=devices, **options)
        options["device"] = devices[0] if devices else self.device
        return open_system(name, system, **options)


def remember_prompt(index: Index, encoder: OpenedEncoder) -> None:
    """Keep the encoder's prompt with the index, so that a template from a file or a checkpoint is found again."""
    from diffretriever.index.notes import PROMPT_NOTE, write_note

    write_note(index, PROMPT_NOTE, json.dumps(encoder.prompt.to_mapping(), ensure_ascii=False, indent=1) + "\n")


def load_recorded(
    index: Index,
    *,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_tokens: int | None = None,
    prompt: str | None = None,
    devices: str | None = None,
) -> OpenedEncoder:
    """Return the encoder that an index was made with.

    Args:
        index: the index, open.
        model: where the model is now, if not where it was.
        device: device to run on.
        dtype: dtype to run in.
        batch_tokens: tokens per forward pass.
        prompt: the prompt, if the index does not remember it.
        devices: several devices to run on, a process each.

    Raises:
        CheckpointError: the model is not where it was.
    """
    recorded = index.manifest.provenance
    with _remembered_prompt(index, prompt) as chosen:
        options = ModelOptions(
            model=model or recorded.model,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            query_slots=recorded.query_slots,
            passage_slots=recorded.passage_slots,
            prompt=chosen,
            protocol=recorded.protocol,
            readout=recorded.readout,
            steps=recorded.steps,
            max_query_length=recorded.max_query_length,
            max_passage_length=recorded.max_passage_length,
            system=recorded.system,
            devices=devices,
        )
        try:
            return options.load()
        except CheckpointError as error:
            if model is None:
                raise CheckpointError(f"{error}; the index was made with it: say where it is now by --model") from error
            raise


@contextmanager
def _remembered_prompt(index: Index, given: str | None) -> Iterator[str | None]:
    """Give the prompt of an index: the one asked for, its own, the bundled one of that name, else the model's own."""
    from diffretriever.index.notes import PROMPT_NOTE, read_note

    text = read_note(index, PROMPT_NOTE) if given is None else None
    if text is None:
        yield given or _bundled(index.manifest.provenance.prompt)
        return
    with tempfile.TemporaryDirectory(prefix="diffretriever-") as folder:
        path = Path(folder) / PROMPT_NOTE
        path.write_text(text, encoding="utf-8")
        yield str(path)


def _bundled(prompt: str) -> str | None:
    from diffretriever.errors import PromptError
    from diffretriever.prompts import Prompt

    try:
        return Prompt.load(prompt).name
    except PromptError:
        return None
