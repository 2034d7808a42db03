"""Storage: in what form vectors are kept."""

from __future__ import annotations
