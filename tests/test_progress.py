from __future__ import annotations

import pytest

from diffretriever.progress import progress_bar


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_shown_without_a_terminal(capfd, enabled):
    with progress_bar("encoding", 3, enabled=enabled) as advance:
        advance(3)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_the_count(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("encoding", 3) as advance:
        advance(3)
    out, err = capfd.readouterr()
    assert out == ""
    assert "encoding" in err
    assert "3/3" in err
