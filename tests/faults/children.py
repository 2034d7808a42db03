"""Python run in another process, so that what kills it does not kill the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PRELUDE = """
import sys
from pathlib import Path
from diffretriever.corpus import Passage
from diffretriever.errors import DiffRetrieverError, IndexLockedError
from diffretriever.index import Index
from tests.faults.inspection import examine, held_passages, make_encoder
"""


def start(code: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start Python code whose `sys.argv[1:]` are the arguments; `before` are words to put before the interpreter."""
    return subprocess.Popen(
        [*before, sys.executable, "-c", _PRELUDE + code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 600) -> list[str]:
    """Return the lines that a process printed; it must have ended in order, and not by a signal."""
    out, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"ended with {process.returncode}: {errors[-3000:]}"
    return out.splitlines()


def run(code: str, *arguments: object, before: tuple[str, ...] = ()) -> list[str]:
    return finish(start(code, *arguments, before=before))
