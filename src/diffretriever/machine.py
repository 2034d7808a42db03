"""Machine: what a measurement ran on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Packages whose versions decide numbers.
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "ir_measures", "pytrec_eval-terrier", "bm25s")


@dataclass(frozen=True)
class Machine:
    """The hardware a measurement ran on, and how busy it was.

    Attributes:
        processor: model of the processor.
        cores: number of logical cores.
        memory_bytes: installed memory; 0 where the system does not tell.
        accelerator: name of the first GPU, None without one.
        threads: threads that torch computes with.
        load: mean number of running processes over the last minute; None where the system does not tell.
        platform: operating system.
    """

    processor: str
    cores: int
    memory_bytes: int
    accelerator: str | None
    threads: int
    load: float | None
    platform: str

    @staticmethod
    def here() -> Machine:
        """Return the facts of this machine as it is now."""
        import torch

        return Machine(
            processor=_processor(),
            cores=os.cpu_count() or 1,
            memory_bytes=_memory(),
            accelerator=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
            threads=torch.get_num_threads(),
            load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            platform=platform.platform(terse=True),
        )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
