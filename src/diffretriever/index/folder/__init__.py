"""The folder of an index: its life, its lock, its seal."""

from __future__ import annotations
