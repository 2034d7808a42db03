"""FolderLock: one process at a time writes a folder."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger("diffretriever")

LOCK_FILE = ".lock"
#: What systems say of a lock that another opener holds.
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class FolderTakenError(RuntimeError):
    """Another opener holds the lock; those who ask for it say in their own words what to do.

    Attributes:
        owner: who does, as "process 17", or "another process".
    """

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


class FolderLock:
    """An exclusive lock on a folder, held until `release` or the end of the process, however that ends.

    The operating system keeps the lock, so a killed process leaves none behind. It belongs to the process that took it:
    one forked from that process can neither give it back nor, by living on, keep it from being given back.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            FolderTakenError: another opener holds it.
            OSError: the file system has no locks, as some of clusters have none.
        """
        path = folder / LOCK_FILE
        self._owner = os.getpid()
        # Opened for appending, so that a refused opener does not erase the owner's number.
        self._file: BinaryIO | None = path.open("a+b")
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno not in _TAKEN:
                self._file.close()
                self._file = None
                raise
            self._file.seek(1)
            owner = self._file.read(32).decode("ascii", "replace").strip()
            self._file.close()
            self._file = None
            raise FolderTakenError(f"process {owner}" if owner else "another process") from None
        self._file.truncate(0)
        # Byte 0 is what Windows locks; the number stands behind it so that others may read it.
        self._file.write(b" " + str(self._owner).encode())
        self._file.flush()

    @property
    def is_own(self) -> bool:
        """Whether this process took the lock, not one that it was forked from."""
        return os.getpid() == self._owner

    def release(self) -> None:
        """Give the lock back; doing so twice is harmless, and so is doing it in a forked process."""
        if self._file is not None:
            try:
                if self.is_own:
                    _unlock(self._file)
            finally:  # closing gives it back, too, unless a forked process lives on
                self._file.close()
                self._file = None


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; where the file system has no locks, warn and go on without.

    Raises:
        FolderTakenError: another opener holds it.
    """
    lock: FolderLock | None = None
    try:
        lock = FolderLock(folder)
    except OSError as error:
        log.warning("%s cannot be locked (%s); let no second process write there", folder, error)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


if sys.platform == "win32":

    def _lock(file: BinaryIO) -> None:
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock(file: BinaryIO) -> None:
        pass  # closing does it: no other process has the same open file

else:

    def _lock(file: BinaryIO) -> None:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: BinaryIO) -> None:
        import fcntl

        # A forked process has the same open file, whose lock outlives our closing it.
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
