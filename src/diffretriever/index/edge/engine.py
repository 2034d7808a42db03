"""EdgeEngine: the embedded engine's shard, with its errors named.

The engine raises bare `Exception`, and a `PanicException`, which is not even an Exception, when it meets files that it
cannot make sense of. Both come out of here as errors of this package.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

import qdrant_edge as qe

from diffretriever.errors import DiffRetrieverError, IndexFormatError, IndexLockedError

T = TypeVar("T")
#: Bytes that must stay free beside those of a write.
SPARE_BYTES = 2**26
#: Folder of the engine's write log, which the engine locks.
_WAL = "wal"


class EdgeEngine:
    """An open shard of the embedded engine."""

    def __init__(self, folder: Path, config: qe.EdgeConfig) -> None:
        """Open the shard of a folder; a new one of this layout if the folder is empty.

        Raises:
            IndexLockedError: another process holds the folder open.
            IndexFormatError: the engine cannot read the folder.
        """
        self._folder = folder
        self._owner = os.getpid()
        folder.mkdir(parents=True, exist_ok=True)
        new = not any(folder.iterdir())
        try:
            self._shard = qe.EdgeShard.create(str(folder), config) if new else qe.EdgeShard.load(str(folder))
        except BaseException as error:
            _raise(error, f"{folder} cannot be opened by the engine")

    def ask(self, what: str, question: Callable[[qe.EdgeShard], T]) -> T:
        """Return what the shard answers.

        Args:
            what: the request in words, for the message of an error.
            question: the request.

        Raises:
            IndexFormatError: the files are damaged.
            OSError: the disk is full.
        """
        try:
            return question(self._shard)
        except BaseException as error:
            _raise(error, f"the engine failed to {what} in {self._folder}")

    def check_space(self, size: int) -> None:
        """Raise unless the disk has room for `size` more bytes and what the engine writes beside them.

        The engine writes to maps of files that have holes, and a process that does so on a full disk is ended by the
        system before anyone can say why.

        Raises:
            OSError: it has not.
        """
        free, needed = shutil.disk_usage(self._folder).free, size + SPARE_BYTES
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"no space left for {self._folder}: {free:,} bytes are free and this write may need {needed:,}; free "
                "some and write again",
            )

    def close(self) -> None:
        """Flush and release the folder."""
        try:
            self.ask("flush", lambda shard: shard.flush())
        finally:
            if os.getpid() == self._owner:
                _unlock(self._folder / _WAL)
            self.ask("close", lambda shard: shard.close())


def _unlock(folder: Path) -> None:
    """Give back the lock that the engine has on a folder.

    It does so itself by closing the folder, which is not enough where a process forked from this one has it open, too.
    """
    if sys.platform == "win32":
        return
    import fcntl

    # Only the engine knows the number of its open folder.
    with suppress(OSError):
        locked = folder.stat()
        for number in map(int, os.listdir("/dev/fd")):
            with suppress(OSError):
                if os.path.samestat(os.fstat(number), locked):
                    fcntl.flock(number, fcntl.LOCK_UN)


def _raise(error: BaseException, what: str) -> NoReturn:
    if isinstance(error, DiffRetrieverError | OSError) or not _is_engine_error(error):
        raise error
    text = " ".join(str(error).split())
    if "WouldBlock" in text:
        raise IndexLockedError(f"{what}: it is open in another process; close it there") from error
    # Looked for in all of a message, whose paths are long, and shown shortened.
    full, text = "os error 28" in text or "No space left" in text, text[:300]
    if full:
        raise OSError(errno.ENOSPC, f"{what}: no space left on the disk ({text}); free some and write again") from error
    raise IndexFormatError(
        f"{what} ({text or type(error).__name__}); restore the index from a copy, rebuild it, or try "
        "`diffretriever check DIR --repair`"
    ) from error


def _is_engine_error(error: BaseException) -> bool:
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
