"""The exceptions of the package.

    DiffRetrieverError
    ├── InputError           (ValueError)         a text, an option or a number that cannot be used
    ├── PromptError          (ValueError)         a prompt template that cannot be read or filled
    ├── CheckpointError      (ValueError)         a model folder whose files are missing, foreign or do not fit
    ├── AttentionError       (RuntimeError)       a loaded backbone that does not attend as its row says
    ├── CorpusError          (ValueError)         an input file with a bad line; says which
    ├── IndexFormatError     (ValueError)         a directory that is no index, or one of another format
    ├── IndexMismatchError   (ValueError)         a query encoded otherwise than the index
    ├── IndexLockedError     (RuntimeError)       an index that another process holds open
    ├── FolderAccessError    (PermissionError)    the folder of an index that this user may not write
    ├── WriteError           (OSError)            a write that failed midway; says which passages are in
    ├── PassageNotFoundError (KeyError)           an id that the index does not hold
    ├── ServerError          (ConnectionError)    a search server that cannot be reached or does not obey
    ├── WorkerError          (RuntimeError)       a process that encodes for this one has failed or ended
    └── MissingExtraError    (ImportError)        an optional dependency that is not installed

Every message says what is wrong, the value seen, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class DiffRetrieverError(Exception):
    """Base of every exception this package raises on purpose."""


class InputError(DiffRetrieverError, ValueError):
    """A text, option or number given by the caller cannot be used."""


class PromptError(DiffRetrieverError, ValueError):
    """A prompt template cannot be found, read or filled."""


class CheckpointError(DiffRetrieverError, ValueError):
    """A model folder lacks a file or tensor, or holds one that does not fit."""


class AttentionError(DiffRetrieverError, RuntimeError):
    """A loaded backbone does not attend in the direction its registry row says."""


class CorpusError(DiffRetrieverError, ValueError):
    """An input file holds a line that cannot be read; the message names file and line."""


class IndexFormatError(DiffRetrieverError, ValueError):
    """A directory is not an index, is damaged, or was written by a newer version."""


class IndexMismatchError(DiffRetrieverError, ValueError):
    """Representations were made otherwise than those of the index; the message says what differs."""


class IndexLockedError(DiffRetrieverError, RuntimeError):
    """Another process holds the index open."""


class FolderAccessError(DiffRetrieverError, PermissionError):
    """The folder of an index may not be written by this user, and opening locks it."""


class WriteError(DiffRetrieverError, OSError):
    """Writing passages failed midway, such as on a full disk.

    Attributes:
        stored: ids of the passages of the batch that are in the index as they were to be written, each whole; the
            others are as they were. None of a deletion.
    """

    def __init__(self, message: str, stored: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.stored = stored


class PassageNotFoundError(DiffRetrieverError, KeyError):
    """The index holds no passage of this id."""

    def __str__(self) -> str:
        """Show the message itself; KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""


class ServerError(DiffRetrieverError, ConnectionError):
    """A search server cannot be reached, or does not do what it is asked; the message says where and what to do.

    Attributes:
        stored: of a write that failed, ids of the passages that are stored for sure; others may be as well.
    """

    def __init__(self, message: str, stored: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.stored = tuple(stored)


class WorkerError(DiffRetrieverError, RuntimeError):
    """A process that encodes for this one has failed or ended; the message names its device."""


class MissingExtraError(DiffRetrieverError, ImportError):
    """Optional dependencies are missing; the message names the extra that brings them."""

    def __init__(self, packages: str | Sequence[str], extra: str, purpose: str) -> None:
        names = [packages] if isinstance(packages, str) else packages
        needed = f"the package {names[0]!r} is" if len(names) == 1 else f"the packages {_listed(names)} are"
        super().__init__(f'{needed} needed for {purpose}: pip install "diffretriever[{extra}]"')


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


@contextmanager
def blaming(file: str, advice: str = "restore the file") -> Iterator[None]:
    """Turn what a library raises on a damaged or foreign file, which may be anything, into a CheckpointError.

    Args:
        file: the file and what is wrong with it, such as "x.gguf: not a readable GGUF file".
        advice: what to do.

    Raises:
        CheckpointError: something was raised that may come from the file's content; what has other causes, such as a
            lack of memory, of permission or of a package, is raised as it is.
    """
    try:
        yield
    except (DiffRetrieverError, MemoryError, PermissionError, ImportError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file}: {type(error).__name__}: {reason}; {advice}") from error
