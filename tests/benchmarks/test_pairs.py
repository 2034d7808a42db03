from __future__ import annotations

import pytest
from pairs import Comparison, DisagreementError, Timing, compare


def test_sides_take_turns_and_ratios_are_paired() -> None:
    calls: list[str] = []
    found = compare("x", lambda: calls.append("ours"), lambda: calls.append("other"), lambda a, b: None, rounds=3)
    assert calls == ["ours", "other"] * 4
    assert len(found.ratios()) == 3
    known = Comparison("y", [Timing(1, 2), Timing(1, 1)], [Timing(3, 8), Timing(1, 2)])
    assert known.ratios() == [4, 2]
    assert known.median("wall") == 2
    assert "| y | 3.00 (2.00 to 4.00) |" in known.row()


def test_outputs_that_differ_give_no_times() -> None:
    with pytest.raises(DisagreementError, match="x: 1 is not 2"):
        compare("x", lambda: 1, lambda: 2, lambda a, b: None if a == b else f"{a} is not {b}", rounds=1)
