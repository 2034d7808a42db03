"""Copying index files: with their holes, since engines reserve more than they fill, and onto the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from diffretriever.index.manifest import sync_folder


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder into a new one; the copy is on disk when this returns."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_folder(path, target / path.name)
        else:
            copy_file(path, target / path.name)
    sync_folder(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, leaving out what was never written to; the copy is on disk when this returns."""
    with source.open("rb") as old, target.open("wb") as new:
        if hasattr(os, "SEEK_DATA"):
            _copy_data(old.fileno(), new.fileno(), os.fstat(old.fileno()).st_size)
        else:
            shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())


def _copy_data(old: int, new: int, size: int) -> None:
    end = 0
    while end < size:
        try:
            start = os.lseek(old, end, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            break
        end = os.lseek(old, start, os.SEEK_HOLE)
        os.lseek(old, start, os.SEEK_SET)
        os.lseek(new, start, os.SEEK_SET)
        while start < end:
            block = os.read(old, min(1 << 20, end - start))
            if not block:
                break
            written = 0
            while written < len(block):
                written += os.write(new, block[written:])
            start += len(block)
    os.ftruncate(new, size)
