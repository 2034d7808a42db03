"""The embedded engine, Qdrant's inside the process."""

from __future__ import annotations
