from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffretriever.denoising import Denoising, kept_slots


@pytest.mark.parametrize(
    ("slots", "steps", "linear", "counts"),
    [
        (4, 1, False, [4]),
        (4, 2, False, [1, 3]),
        (16, 4, False, [3, 4, 4, 5]),
        (4, 2, True, [2, 2]),
        (5, 2, True, [2, 3]),
        (2, 8, False, [1, 1]),
    ],
)
def test_schedules_of_the_papers_code(slots: int, steps: int, linear: bool, counts: list[int]) -> None:
    assert Denoising(steps, linear=linear).counts(slots) == counts


@given(st.integers(1, 64), st.integers(1, 80), st.booleans())
def test_every_slot_is_filled_once(slots: int, steps: int, linear: bool) -> None:
    counts = Denoising(steps, linear=linear).counts(slots)
    assert sum(counts) == slots
    assert min(counts) >= 1
    assert len(counts) <= steps


def test_special_tokens_end_an_answer_but_not_at_once() -> None:
    tokens = torch.tensor([[5, 6, 7, 8], [5, 9, 7, 9], [9, 5, 6, 7], [9, 5, 9, 7], [5, 6, 7, 9], [3, 5, 3, 6]])
    keep = kept_slots(tokens, torch.tensor([9]), None)
    assert keep.sum(1).tolist() == [4, 1, 4, 4, 3, 4]
    structural = kept_slots(tokens, torch.tensor([9]), torch.tensor([3]))
    assert structural[5].tolist() == [False, True, False, True]
