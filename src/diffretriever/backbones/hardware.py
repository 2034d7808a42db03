"""Hardware: the device, the dtype and the number of threads that fit the machine."""

from __future__ import annotations

import logging
import os

import torch

from diffretriever.errors import InputError

log = logging.getLogger("diffretriever.backbones")


def default_device() -> torch.device:
    """Return the first GPU (CUDA, then Apple's), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def device_named(device: str | torch.device | None) -> torch.device:
    """Return the device of a name, if this machine has it; None is the default one.

    Raises:
        InputError: torch knows no such device, or it is not here.
    """
    if device is None:
        return default_device()
    try:
        found = torch.device(device)
        count = int(torch.get_device_module(found).device_count())
    except (AttributeError, RuntimeError) as error:
        raise InputError(f"device is {str(device)!r}; give cpu, cuda, cuda:1 or mps, or leave it out") from error
    if found.type == "cpu" or (found.index or 0) < count:
        return found
    kind = {"cuda": "CUDA GPU", "mps": "GPU of Apple's"}.get(found.type, f"device of type {found.type}")
    there = f"no {kind} here" if not count else f"no {kind} of that number here, the last is {found.type}:{count - 1}"
    raise InputError(f"device is {str(device)!r}; there is {there}: leave the device out, or give cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 for a CUDA GPU and for a CPU that is faster in it (AMX, or AVX512_BF16 of AMD), else fp32."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cpu" and _faster_in_bf16() else torch.float32


def warn_of_slow_bf16(device: torch.device, instead: str) -> None:
    """Warn of bf16 on a CPU that is slower in it: many times so where no instruction multiplies in bf16.

    Args:
        device: where to compute.
        instead: what the user says for fp32.
    """
    if device.type == "cpu" and not _faster_in_bf16():
        log.warning("this CPU is slower in bf16 than in fp32, on some many times; for fp32 say %s", instead)


def usable_threads() -> int:
    """Return how many threads to compute with: the cores this process may use, or OMP_NUM_THREADS if that is set.

    How busy the cores are at the moment does not count: another number of threads adds in another order, and the last
    bits of a vector would depend on the neighbours of the process. An index that was interrupted would then go on with
    other numbers.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # torch's own choice leaves out the second threads of a core, which products gain nothing from.
    return max(1, min(usable, torch.get_num_threads()))


def _faster_in_bf16() -> bool:
    asked = getattr(torch.cpu, "get_capabilities", None)
    if asked is not None:
        found = asked()
        # On a Xeon whose virtual machine hides AMX, AVX512_BF16 alone was slower than fp32 (docs/training.md).
        intel = str(found.get("cpu_name", "")).startswith("Intel")
        return bool(found.get("amx_bf16") or (found.get("avx512_bf16") and not intel))
    older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(older and older())
