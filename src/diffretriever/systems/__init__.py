"""Systems: the retrievers that the paper compares with, over the same backbones, prompts, batches and scores."""

from __future__ import annotations
