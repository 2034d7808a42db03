"""PromptReps: an autoregressive model asked for words, read where it says them."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.decoding import decode
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.conventions import Protocol, Side, System, protocol_named
from diffretriever.denoising import predictions_of
from diffretriever.encoding import Reading
from diffretriever.errors import CheckpointError
from diffretriever.prompted import PromptedEncoder, read_at, term_rule
from diffretriever.prompts import Chat, Prompt
from diffretriever.sequences import Batch, build_frame
from diffretriever.systems.frames import TextFrame, text_frame
from diffretriever.terms import PAPER_ZERO_SHOT, TermRule

#: What ends the quoted answer that the prompt opens.
_CLOSING_QUOTE = '"'


class PromptReps(PromptedEncoder):
    """One vector per token of the model's answer: the hidden state that predicts it, and the logits there.

    Single (K = 1) reads the last position of the prompt. Multi decodes the answer greedily, up to K tokens, one forward
    pass each; a special token or the closing quote ends it, but not as the first token of an answer.

    Args:
        backbone: a causal language model with its vocabulary head.
        settings: prompt, K per side (1 by default), lengths and protocol.
        name: name recorded in the provenance.
        batch_tokens: tokens per forward pass.

    Raises:
        CheckpointError: the backbone is not causal.
        InputError: denoising or another readout was asked for, or a length leaves no room for text.
    """

    system: ClassVar[System] = "promptreps"

    def __init__(
        self, backbone: Backbone, settings: RetrieverSettings, *, name: str = "", batch_tokens: int | None = None
    ) -> None:
        spec = backbone.spec
        if spec.attention != "causal":
            raise CheckpointError(
                f"{name or spec.name}: promptreps decodes token by token, which needs causal attention, the backbone's "
                f"is {spec.attention}; choose another --system"
            )
        query_slots = 1 if settings.query_slots is None else settings.query_slots
        passage_slots = 1 if settings.passage_slots is None else settings.passage_slots
        prompt = Prompt.choose(settings.prompt, spec.prompt, query_slots, passage_slots)
        chat = Chat.fitting(spec.chat, backbone.tokenizer.id_of)
        protocol = protocol_named(settings.protocol)

        def frame(side: Side, slots: int, max_length: int) -> TextFrame:
            return _frame(side, prompt, chat, backbone, protocol, slots, max_length)

        super().__init__(
            backbone,
            replace(read_at(settings, "last", self.system), query_slots=query_slots, passage_slots=passage_slots),
            prompt,
            chat,
            {
                "query": frame("query", query_slots, settings.max_query_length),
                "passage": frame("passage", passage_slots, settings.max_passage_length),
            },
            _term_rule(protocol, settings.tuned, max(query_slots, passage_slots)),
            name=name,
            stops="quote",
            batch_tokens=batch_tokens,
        )
        self.answer_lengths: dict[Side, int] = {"query": query_slots, "passage": passage_slots}
        quote = backbone.tokenizer.id_of(_CLOSING_QUOTE)
        self.stop_ids = backbone.tokenizer.special_ids | (frozenset() if quote is None else {quote})

    def read(self, batch: Batch, side: Side, words: int) -> Reading:
        """Return the hidden states that predict the tokens of the answers; differentiable outside inference mode."""
        length = self.answer_lengths[side]
        if length == 1:
            hidden = self.backbone.hidden_at(batch)
            keep = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        else:
            hidden, _, keep = decode(self.backbone, batch.ids, batch.mask, length, self.stop_ids)
        if not words:
            return Reading(hidden, keep)
        predictions = predictions_of(self.backbone, hidden, words)
        return Reading(hidden, keep, predictions.word_ids, predictions.word_probabilities)


def _frame(
    side: Side, prompt: Prompt, chat: Chat, backbone: Backbone, protocol: Protocol, slots: int, max_length: int
) -> TextFrame:
    """Return the frame of one side; the default protocol leaves room for the answer but its last token, never read."""
    special = backbone.special
    asked = build_frame(side, replace(prompt, tail=()), chat, backbone.tokenizer, special, protocol, slots, max_length)
    room = max_length - (slots - 1 if protocol.length_includes_slots else 0)
    return text_frame(side, asked.prefix, asked.suffix, special.end_of_sequence, room)


def _term_rule(protocol: Protocol, tuned: bool, slots: int) -> TermRule:
    """Return the rule of a protocol; the paper's code keeps the weights of several positions as they are."""
    rule = term_rule(protocol, tuned)
    return replace(PAPER_ZERO_SHOT, scale=None) if slots > 1 and rule.scale is not None else rule
