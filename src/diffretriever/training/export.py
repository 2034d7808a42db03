"""Export: a finished run as a folder that `DiffRetriever.from_pretrained` reads, in half precision."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from diffretriever.pretrained import save_checkpoint
from diffretriever.training.student import Student


def export_student(student: Student, folder: Path) -> None:
    """Write config, fp16 weights, tokeniser, slot embeddings and settings.

    fp16 halves the size and keeps three digits, more than the bf16 products of training had.
    """
    backbone = copy.deepcopy(student.backbone).to(torch.float16)
    save_checkpoint(folder, backbone, student.settings, student.slot_embeddings.detach().to(torch.float16))
