"""Hardware: the device, the dtype and the number of threads that fit the machine."""

from __future__ import annotations

import math
import os

import torch


def default_device() -> torch.device:
    """Return the first GPU (CUDA, then Apple's), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 for a CUDA GPU and for a CPU that multiplies in it (AVX512_BF16 or AMX), else fp32."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cpu" and _multiplies_bf16() else torch.float32


def free_threads() -> int:
    """Return how many threads can compute now without waiting for others: usable cores less those that are busy.

    What the user set in OMP_NUM_THREADS stands.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = math.floor(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    # torch's own choice leaves out the second threads of a core, which products gain nothing from.
    return max(1, min(usable - busy, torch.get_num_threads()))


def _multiplies_bf16() -> bool:
    asked = getattr(torch.cpu, "get_capabilities", None)
    if asked is not None:
        found = asked()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(older and older())
