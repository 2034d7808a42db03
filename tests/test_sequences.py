from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from diffretriever.sequences import Frame, batches_by_length, collate

FRAME = Frame("query", prefix=(1, 2), suffix=(3,), tail=(8, 9), mask_id=7, slots=3, text_room=4, spread=False)


def test_order_of_the_parts() -> None:
    sequence = FRAME.wrap([5, 5, 6])
    assert sequence.ids == (1, 2, 5, 5, 6, 3, 7, 7, 7, 8, 9)
    assert sequence.first_slot == 6
    assert FRAME.wrap([]).ids == (1, 2, 3, 7, 7, 7, 8, 9)
    assert FRAME.wrap([5] * 99).ids == (1, 2, 5, 5, 5, 5, 3, 7, 7, 7, 8, 9)


def test_masked_positions_come_from_the_layout_and_not_from_ids() -> None:
    """A mask token inside the text is text."""
    batch = collate([FRAME.wrap([7, 7]), FRAME.wrap([5])], slots=3, pad_id=0)
    assert batch.slots.tolist() == [[5, 6, 7], [4, 5, 6]]
    assert batch.ids.tolist() == [[1, 2, 7, 7, 3, 7, 7, 7, 8, 9], [1, 2, 5, 3, 7, 7, 7, 8, 9, 0]]
    assert batch.mask.sum(1).tolist() == [10, 9]


def test_spread_slots_are_told_the_middles_of_the_parts_of_their_text() -> None:
    frame = replace(FRAME, text_room=12, spread=True)
    assert frame.wrap(range(12)).slot_positions == (2 + 2, 2 + 6, 2 + 10)
    assert frame.wrap(range(99)).slot_positions == frame.wrap(range(12)).slot_positions, "of what is left of the text"
    assert frame.wrap([5]).slot_positions == (2, 2, 2)
    assert frame.wrap([]).slot_positions == (2, 2, 2)
    batch = collate([frame.wrap(range(12)), frame.wrap([5, 5])], slots=3, pad_id=0)
    assert batch.positions is not None
    assert batch.positions[0].tolist() == [*range(15), 4, 8, 12, 18, 19]
    assert batch.positions[1].tolist() == [*range(5), 2, 3, 3, *range(8, 20)]
    assert collate([FRAME.wrap([5])], slots=3, pad_id=0).positions is None


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    batches = list(batches_by_length(lengths, tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= tokens
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_without_padding_fill_the_budget(lengths: list[int], tokens: int) -> None:
    batches = list(batches_by_length(lengths, tokens, padded=False))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(size <= tokens or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
    for size, following in zip(sizes, batches[1:], strict=False):
        assert size + lengths[following[0]] > tokens
