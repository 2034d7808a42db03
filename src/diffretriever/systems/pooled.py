"""Pooled: the systems that make one vector of a text's own tokens and no terms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.specs import Attention
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.conventions import Side
from diffretriever.encoding import Reading
from diffretriever.errors import CheckpointError, InputError
from diffretriever.prompted import PromptedEncoder, read_at
from diffretriever.prompts import Chat, Prompt
from diffretriever.sequences import Batch
from diffretriever.systems.frames import TextFrame, text_frame


class Pooled(PromptedEncoder):
    """A system with one vector a text: a template of two sides, a way to read, and the attention it needs.

    Attributes:
        template: prompt used when none is asked for.
        position: name of the readout, as the provenance records it.
        directions: how the backbone may attend.

    Args:
        backbone: the language model; it needs no vocabulary head.
        settings: prompt, lengths and protocol.
        name: name recorded in the provenance.
        batch_tokens: tokens per forward pass.

    Raises:
        CheckpointError: the backbone attends in another direction.
        InputError: several vectors, denoising or another readout were asked for.
    """

    template: ClassVar[str]
    position: ClassVar[str]
    directions: ClassVar[tuple[Attention, ...]]

    def __init__(
        self, backbone: Backbone, settings: RetrieverSettings, *, name: str = "", batch_tokens: int | None = None
    ) -> None:
        spec = backbone.spec
        if spec.attention not in self.directions:
            raise CheckpointError(
                f"{name or spec.name}: {self.system} needs {' or '.join(self.directions)} attention, the backbone's is "
                f"{spec.attention}; choose another --system"
            )
        for side, slots in (("query", settings.query_slots), ("passage", settings.passage_slots)):
            if slots not in (None, 1):
                raise InputError(f"{side}_slots is {slots}; {self.system} makes one vector of a text")
        prompt = Prompt.choose(settings.prompt, self.template, 1, 1)
        chat = Chat.load("bare")
        super().__init__(
            backbone,
            read_at(settings, self.position, self.system),
            prompt,
            chat,
            {
                "query": _frame("query", prompt, backbone, settings.max_query_length),
                "passage": _frame("passage", prompt, backbone, settings.max_passage_length),
            },
            None,
            name=name,
            batch_tokens=batch_tokens,
        )

    @staticmethod
    @abstractmethod
    def pool(backbone: Backbone, batch: Batch) -> torch.Tensor:
        """Return one hidden state per text, [B, 1, D]; differentiable outside inference mode."""

    def read(self, batch: Batch, side: Side, words: int) -> Reading:
        """Return the pooled hidden states; a pooled vector predicts no words."""
        hidden = self.pool(self.backbone, batch)
        return Reading(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))

    def tokenise(self, texts: Sequence[str], side: Side) -> list[list[int]]:
        """Return the ids of texts with their template around them, tokenised as one string as the originals do."""
        before, after = self.prompt.affixes(side, self.chat, 1)
        return super().tokenise([f"{before}{text}{after}" for text in texts], side)


def _frame(side: Side, prompt: Prompt, backbone: Backbone, max_length: int) -> TextFrame:
    """Return what the tokeniser puts around any text, closed by the end token where the template ends with it."""
    before, after = backbone.tokenizer.around()
    end = backbone.special.end_of_sequence
    tail = (end,) if prompt.tail and after[-1:] != (end,) else ()
    return text_frame(side, before, (*after, *tail), end, max_length)
