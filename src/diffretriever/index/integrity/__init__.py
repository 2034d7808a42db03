"""Integrity: what may go into an index, and whether what went in is still there."""

from __future__ import annotations
