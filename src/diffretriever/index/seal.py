"""Seal: what an index held when it was last closed in order.

It is taken off before the first write and put on at the end, so where it is, the index must hold just that. It finds
what no engine sees by itself: files that were cut or went back to an earlier state and still make sense.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from diffretriever.errors import IndexFormatError
from diffretriever.index.digests import Checksum
from diffretriever.index.manifest import replace_file, sync_folder

SEAL_FILE = "seal.json"


def read_seal(folder: Path) -> Checksum | None:
    """Return the seal of an index folder, or None where there is none.

    Raises:
        IndexFormatError: it cannot be read.
    """
    path = folder / SEAL_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return Checksum(int(about["passages"]), str(about["digest"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IndexFormatError(
            f"{path} cannot be read ({error}); restore the index from a copy, or look for damage with "
            "`diffretriever check DIR --repair`"
        ) from error


def write_seal(folder: Path, checksum: Checksum) -> None:
    """Seal an index folder."""
    replace_file(folder / SEAL_FILE, json.dumps(asdict(checksum)) + "\n")


def break_seal(folder: Path) -> None:
    """Take the seal off; it stays off after a power cut."""
    try:
        (folder / SEAL_FILE).unlink()
    except FileNotFoundError:
        return
    sync_folder(folder)
