"""The exhaustive engine, the reference of the others."""

from __future__ import annotations
