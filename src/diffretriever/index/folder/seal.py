"""Seal: what an index held when it was last closed in order.

It is taken off before the first write and put on at the end, so where it is, the index must hold just that. It finds
what no engine sees by itself: files that were cut or went back to an earlier state and still make sense.

While the index is closed the seal also holds the sums of the small files of an engine that has none of its own. They
are compared before the engine reads them, since some of them can make it end the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from diffretriever.errors import IndexFormatError
from diffretriever.index.integrity.digests import Checksum
from diffretriever.index.manifest import NOT_DAMAGE, replace_file, sync_folder

SEAL_FILE = "seal.json"
#: Files up to this size have sums.
_SMALL = 65536


@dataclass(frozen=True)
class Seal:
    """What an index held when it was last closed.

    Attributes:
        checksum: of its passages.
        files: sums of its small files by path; empty while it is open.
    """

    checksum: Checksum
    files: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Seal | None:
        """Return the seal of an index folder, or None where there is none.

        Raises:
            IndexFormatError: it cannot be read.
            OSError: the system does not let it be read now.
        """
        path = folder / SEAL_FILE
        try:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            checksum = Checksum(int(about["checksum"]["passages"]), str(about["checksum"]["digest"]))
            return Seal(checksum, {str(name): str(value) for name, value in about["files"].items()})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
                raise
            raise IndexFormatError(
                f"{path} cannot be read ({error}); restore the index from a copy, or look for damage with "
                "`diffretriever check DIR --repair`"
            ) from error

    def write(self, folder: Path) -> None:
        """Put the seal on an index folder."""
        replace_file(folder / SEAL_FILE, json.dumps(asdict(self)) + "\n")

    def check_files(self, store: Path) -> None:
        """Raise IndexFormatError when a small file is not as it was."""
        if not self.files:
            return
        found = small_files(store)
        if changed := sorted(n for n in {*found, *self.files} if found.get(n) != self.files.get(n)):
            raise IndexFormatError(
                f"{store / changed[0]} {'is not as it was' if changed[0] in found else 'is missing'} since the index "
                "was closed; restore the index from a copy, or try `diffretriever check DIR --repair`"
            )


def small_files(store: Path) -> dict[str, str]:
    """Return the sums of the small files of a store, by path."""
    return {
        path.relative_to(store).as_posix(): blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.stat().st_size <= _SMALL
    }


def break_seal(folder: Path) -> None:
    """Take the seal off; it stays off after a power cut."""
    try:
        (folder / SEAL_FILE).unlink()
    except FileNotFoundError:
        return
    sync_folder(folder)
