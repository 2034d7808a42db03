"""Backbones: the language models underneath, loaded without remote code."""

from __future__ import annotations
