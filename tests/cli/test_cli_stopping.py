"""Indexing as a process of its own: from standard input, and after Ctrl-C, a kill and a lost note."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from cli_samples import MODEL, PASSAGES, held, write_jsonl

from diffretriever.index import Index


def start(*args, code="from diffretriever.cli.main import main; main()", **options):
    command = [sys.executable, "-c", code, *map(str, args)]
    if os.name == "posix":
        # A shell starts background jobs with SIGINT ignored, which children inherit: Ctrl-C would not reach them.
        options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_standard_input(tmp_path, corpus):
    process = start("index", "-", "--out", tmp_path / "i", "--model", MODEL, stdin=subprocess.PIPE)
    out, err = process.communicate(corpus.read_bytes(), timeout=300)
    assert (process.returncode, out) == (0, b""), err
    assert b"10 passages in <stdin>" in err
    assert len(held(tmp_path / "i")) == 10


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Give a corpus, and the checksum of an index of it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("many")
    records = [{"id": i, "text": f"{PASSAGES[i % 10]['text']} {i}"} for i in range(TOTAL)]
    corpus = write_jsonl(folder / "many.jsonl", records)
    done = start("index", corpus, "--out", folder / "whole", *BUILD)
    assert done.communicate(timeout=300)
    assert done.returncode == 0
    return corpus, checksum(folder / "whole")


TOTAL = 150
BUILD = ["--model", MODEL, "--batch-size", 4, "--dtype", "float32"]  # a process of its own would choose otherwise


def checksum(folder):
    with Index.open(folder) as index:
        assert index.check().is_whole
        return index.checksum()


#: The command, which stores no more than 30 of the 38 batches until a signal ends it.
HELD = """
import time
from diffretriever.cli import filling
from diffretriever.cli.main import main

encoded = filling.encoded_chunks

def held(*given, **options):
    for number, chunk in enumerate(encoded(*given, **options)):
        if number == 30:
            time.sleep(600)
        yield chunk

filling.encoded_chunks = held
main()
"""


def interrupted(many, folder, sent):
    """Start to index, send a signal when the first batch is stored, and return what was said."""
    process = start("index", many, "--out", folder, *BUILD, code=HELD)
    try:
        for line in process.stderr:  # the estimate comes once the first batch is stored
            if b"of index data" in line:
                break
        process.send_signal(sent)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert out == b""
    assert b"Traceback" not in err
    return process.returncode, err.decode()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_after_ctrl_c_the_same_command_goes_on(cli, tmp_path, many):
    corpus, expected = many
    folder = tmp_path / "i"
    code, err = interrupted(corpus, folder, signal.SIGINT)
    assert code == 130
    there = held(folder)
    assert f"{folder} holds {len(there)} passages and can be searched; the same command goes on" in err
    assert 0 < len(there) < TOTAL
    assert there == {str(i) for i in range(len(there))}
    other = cli("index", corpus, "--out", folder, *BUILD, "--words", 1, "--storage", "float32")
    assert other.code == 1
    assert "storage: float16 against float32; words: 3 against 1" in other.err
    with Index.open(folder) as index:
        index.delete(["0"])  # as if a batch had been stored in part
    done = cli("index", corpus, "--out", folder, *BUILD)
    assert done.code == 0
    assert f"going on: {len(there) - 1} passages are there already" in done.err
    assert checksum(folder) == expected
    assert "exists already" in cli("index", corpus, "--out", folder, *BUILD).err


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_after_a_kill_the_same_command_goes_on(cli, tmp_path, many):
    corpus, expected = many
    folder = tmp_path / "i"
    assert interrupted(corpus, folder, signal.SIGKILL)[0] == -signal.SIGKILL
    assert 0 < len(held(folder)) < TOTAL
    assert cli("index", corpus, "--out", folder, *BUILD).code == 0
    assert checksum(folder) == expected


def test_an_index_that_was_killed_before_its_note_is_taken_up(cli, tmp_path, corpus):
    folder = tmp_path / "i"
    assert cli("index", corpus, "--out", folder, *BUILD).code == 0
    expected = checksum(folder)
    with Index.open(folder) as index:
        index.delete(list(index))
    (folder / "build.json").unlink()
    assert "exists already" in cli("index", corpus, "--out", folder, *BUILD, "--storage", "float32").err
    assert cli("index", corpus, "--out", folder, *BUILD).code == 0
    assert checksum(folder) == expected
    (folder / "build.json").write_text("[")
    assert "cannot be read" in cli("index", corpus, "--out", folder, *BUILD).err
    assert cli("index", corpus, "--out", folder, *BUILD, "--overwrite").code == 0
