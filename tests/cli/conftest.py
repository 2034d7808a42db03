from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_samples import MODEL, PASSAGES, write_jsonl

from diffretriever.cli.main import app


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cli(capfd):
    """Run a command in this process, as the console script would."""

    def run(*args):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            app([str(arg) for arg in args])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Outcome(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", PASSAGES)


@pytest.fixture(scope="session")
def finished_index(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("indexes") / "index"
    with pytest.raises(SystemExit) as stop:
        app(["index", str(corpus), "--out", str(folder), "--model", str(MODEL)])
    assert not stop.value.code
    return folder


@pytest.fixture
def index_folder(tmp_path, finished_index):
    """Give an index of its own to a test that changes it."""
    return Path(shutil.copytree(finished_index, tmp_path / "index"))
