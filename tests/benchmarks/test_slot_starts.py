"""The table of slots before training, of a few passages."""

from __future__ import annotations

import sys

import slot_starts


def test_a_function_word_over_the_text_knows_its_part(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slot_starts.py", "--passages", "4", "--tokens", "[MASK]", "of"])
    slot_starts.main()
    first, _, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "4 passages, minilm, 16 slots, float32"
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [c[:2] for c in cells] == [[t, p] for t in ("`[MASK]`", "`of`") for p in ("after", "spread")]
    mask, word = ([float(x) for x in c[2:]] for c in (cells[0], cells[3]))
    whole, own, others, _, centred = range(5)
    assert word[whole] > mask[whole] + 0.3
    assert word[own] > word[others] + 0.03
    assert word[centred] > 0.2 > abs(mask[centred])
