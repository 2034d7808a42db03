"""Protocol: the conventions that two encodings of the same text may differ in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffretriever.errors import InputError

Readout = Literal["slot", "aligned"]
Side = Literal["query", "passage"]
SlotPositions = Literal["after", "spread"]
Terms = Literal["pieces", "stems"]
System = Literal["diffretriever", "diffembed", "repllama", "promptreps"]


@dataclass(frozen=True)
class Protocol:
    """One consistent set of conventions.

    Attributes:
        name: "default" or "paper".
        length_includes_slots: whether max_length bounds the whole sequence, or only prompt and text, with the
            masked positions and the tail on top (the paper's code).
        strict_content: whether clitics ("n't"), quote marks and single letters are kept out of the content words, and
            special tokens (such as the one for unknown characters) out of their ids.
        parse_special_tokens: whether a special token spelled out inside a user's text becomes that token.
        quantised_terms: whether term weights are integers (x100), as in the paper's code, or fp32.
        bf16_scores: whether score products are rounded to bf16 (the paper's code; it ties many scores).
        unit_pooled: whether the pooled vector, the mean of a text's unit vectors, is given length 1 again. Without that
            (the paper's code) a passage whose slots differ counts less than one whose slots agree.
        linear_schedule: whether tuned checkpoints denoise K // S positions a step (the paper's training class)
            instead of the schedule over noise levels that zero-shot models use.
    """

    name: str
    length_includes_slots: bool
    strict_content: bool
    parse_special_tokens: bool
    quantised_terms: bool
    bf16_scores: bool
    unit_pooled: bool
    linear_schedule: bool


DEFAULT = Protocol(
    name="default",
    length_includes_slots=True,
    strict_content=True,
    parse_special_tokens=False,
    quantised_terms=False,
    bf16_scores=False,
    unit_pooled=True,
    linear_schedule=False,
)

PAPER = Protocol(
    name="paper",
    length_includes_slots=False,
    strict_content=False,
    parse_special_tokens=True,
    quantised_terms=True,
    bf16_scores=True,
    unit_pooled=False,
    linear_schedule=True,
)

PROTOCOLS = {p.name: p for p in (DEFAULT, PAPER)}


def protocol_named(name: str) -> Protocol:
    """Return the protocol of that name."""
    if name not in PROTOCOLS:
        raise InputError(f"no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
