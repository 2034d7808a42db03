"""Systems: which system a command evaluates, and its short name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from diffretriever.cli.models import ModelOptions
from diffretriever.errors import InputError

if TYPE_CHECKING:
    import torch

    from diffretriever.encoder import Encoder
    from diffretriever.searcher import LexicalSystem

_BM25 = "bm25"


@dataclass(frozen=True)
class SystemOptions(ModelOptions):
    """The options that choose a system, BM25 among them; what is None is the checkpoint's own."""

    k1: float = 0.9
    b: float = 0.4

    @property
    def label(self) -> str:
        """A short name: the model, and the options that make it another system than the model's own."""
        name = _BM25 if _BM25 in (self.model, self.system) else Path(self.model).name
        parts = [name]
        if name == _BM25:
            parts += [] if (self.k1, self.b) == (0.9, 0.4) else [f"{self.k1:g}", f"{self.b:g}"]
        else:
            parts += [] if self.system is None else [self.system]
            for given, sign in ((self.query_slots, "q"), (self.passage_slots, "p"), (self.steps, "s")):
                parts += [] if given is None else [f"{sign}{given}"]
            parts += [Path(v).stem for v in (self.prompt, self.protocol, self.readout, self.dtype) if v is not None]
        return re.sub(r"[^\w.-]+", "_", "-".join(parts))

    def open(self) -> Encoder | LexicalSystem:
        """Return the system.

        Raises:
            CheckpointError: the model cannot be found or loaded.
            InputError: an option is out of range, or the system is unknown.
        """
        if _BM25 not in (self.model, self.system):
            return self.load()
        if self.model != _BM25:
            raise InputError(f"BM25 reads no model, got {self.model}; give bm25 as MODEL")
        from diffretriever.systems.bm25 import BM25

        return BM25(self.k1, self.b)


def scoring_device(system: Encoder | LexicalSystem) -> torch.device | str:
    """Return where the dense scores of a system are computed: where its backbone is, or the first of several."""
    placed = getattr(system, "backbone", system)
    return cast("torch.device | str", getattr(placed, "device", "cpu"))
