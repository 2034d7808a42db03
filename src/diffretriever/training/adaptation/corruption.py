"""Corruption: which tokens of a text are masked, and how much each counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: Step of the sequence of mask rates: the golden ratio, whose multiples spread most evenly over an interval.
_GOLDEN = 0.6180339887498949


class Corrupted(NamedTuple):
    """A text some of whose tokens are masked.

    Attributes:
        ids: its tokens, the mask in the place of some.
        positions: places of the masked tokens.
        targets: the tokens that stood there.
        weight: what each counts: 1 / t, since a share t of them is masked.
        tokens: how many tokens could have been masked; sums of weighted losses are divided by it.
    """

    ids: list[int]
    positions: list[int]
    targets: list[int]
    weight: float
    tokens: int


def mask_rate(number: int, start: float, least: float) -> float:
    """Return the mask rate of the number-th text: uniform from `least` to 1, evenly spread over neighbouring numbers.

    Rates spread within a batch make the loss less noisy than independent ones (Kingma et al. 2021).

    Args:
        number: number of the text.
        start: where in [0, 1) the sequence starts.
        least: lower bound.
    """
    return least + (1.0 - least) * ((start + number * _GOLDEN) % 1.0)


def corrupt(
    ids: Sequence[int], maskable: Sequence[int], rate: float, mask_id: int, rng: np.random.Generator
) -> Corrupted:
    """Return a text with each token at the places `maskable` masked with probability `rate`, independently."""
    drawn = rng.random(len(maskable)) < rate
    positions = [place for place, masked in zip(maskable, drawn.tolist(), strict=True) if masked]
    corrupted = list(ids)
    for place in positions:
        corrupted[place] = mask_id
    return Corrupted(corrupted, positions, [ids[place] for place in positions], 1.0 / rate, len(maskable))
