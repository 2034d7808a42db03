from __future__ import annotations

import encoder


def test_growth_is_the_most_memory_of_a_call() -> None:
    held: list[bytes] = []
    assert 49e6 < encoder._growth(lambda: len(b"x" * 50_000_000)) < 60e6
    assert encoder._growth(lambda: held.append(b"x" * 20_000_000)) > 19e6
    assert encoder._growth(lambda: None) < 5e6


def test_short_texts_are_beginnings_of_abstracts() -> None:
    texts = encoder.short_texts(8)
    assert texts == encoder.short_texts(8)
    assert all(25 <= len(text.split()) <= 95 for text in texts)
    assert all(whole.startswith(text.split()[0]) for text, whole in zip(texts, encoder.abstracts(8), strict=True))
