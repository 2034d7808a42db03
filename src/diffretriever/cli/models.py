"""Models: which encoder a command works with, and how an index remembers it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffretriever.errors import CheckpointError

if TYPE_CHECKING:
    from diffretriever.representations import Provenance
    from diffretriever.retriever import DiffRetriever

#: Holds the prompt of an index, so that a template from a file or a checkpoint is found again.
PROMPT_FILE = "prompt.json"


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
    max_query_length: int | None = None
    max_passage_length: int | None = None

    def load(self) -> DiffRetriever:
        """Return the encoder.

        Raises:
            CheckpointError: the model cannot be found or loaded.
            InputError: an option is out of range.
        """
        from diffretriever.retriever import DiffRetriever

        # An index is searched from other folders too, so a local model is remembered by its whole path.
        local = self.model != "mini" and Path(self.model).is_dir()
        return DiffRetriever.from_pretrained(
            str(Path(self.model).resolve()) if local else self.model,
            query_slots=self.query_slots,
            passage_slots=self.passage_slots,
            prompt=self.prompt,
            protocol=self.protocol,
            readout=self.readout,
            steps=self.steps,
            max_query_length=self.max_query_length,
            max_passage_length=self.max_passage_length,
            device=self.device,
            dtype=self.dtype,
            batch_tokens=self.batch_tokens,
        )


def remember_prompt(folder: Path, encoder: DiffRetriever) -> None:
    """Keep the encoder's prompt beside the index."""
    text = json.dumps(encoder.prompt.to_mapping(), ensure_ascii=False, indent=1)
    (folder / PROMPT_FILE).write_text(text + "\n", encoding="utf-8")


def load_recorded(
    folder: Path,
    recorded: Provenance,
    *,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_tokens: int | None = None,
    prompt: str | None = None,
) -> DiffRetriever:
    """Return the encoder that an index was made with.

    Args:
        folder: folder of the index.
        recorded: provenance of the index.
        model: where the model is now, if not where it was.
        device: device to run on.
        dtype: dtype to run in.
        batch_tokens: tokens per forward pass.
        prompt: the prompt, if the index does not remember it.

    Raises:
        CheckpointError: the model is not where it was.
    """
    options = ModelOptions(
        model=model or recorded.model,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        query_slots=recorded.query_slots,
        passage_slots=recorded.passage_slots,
        prompt=prompt or _remembered_prompt(folder, recorded),
        protocol=recorded.protocol,
        readout=recorded.readout,
        steps=recorded.steps,
        max_query_length=recorded.max_query_length,
        max_passage_length=recorded.max_passage_length,
    )
    try:
        return options.load()
    except CheckpointError as error:
        if model is None:
            raise CheckpointError(f"{error}; the index was made with it: say where it is now by --model") from error
        raise


def _remembered_prompt(folder: Path, recorded: Provenance) -> str | None:
    """Return the prompt of an index: its own file, else the bundled template of that name, else the model's own."""
    from diffretriever.errors import PromptError
    from diffretriever.prompts import Prompt

    own = folder / PROMPT_FILE
    if own.is_file():
        return str(own)
    try:
        return Prompt.load(recorded.prompt).name
    except PromptError:
        return None
