"""The folder of an index: its life, its seal."""

from __future__ import annotations
