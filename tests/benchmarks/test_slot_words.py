"""The table of what slots say, of a few passages."""

from __future__ import annotations

import re
import sys

import slot_words


def test_slots_say_words_of_their_passages(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slot_words.py", "mini", "scifact", "--passages", "3", "--terms", "4"])
    slot_words.main()
    head, _, *rows, empty, last = capsys.readouterr().out.splitlines()
    assert (head, empty) == ("| passage | slot words | terms |", "")
    assert len(rows) == 3
    for row in rows:
        _, title, words, terms, _ = (cell.strip() for cell in row.split("|"))
        said = words.split(", ")
        assert title
        assert len(said) == len(set(said)) >= 4
        assert len(terms.split(", ")) == 4
    held = re.fullmatch(r"(\d+)% of the words stand in their passage\.", last)
    assert held is not None
    assert int(held[1]) >= 20
