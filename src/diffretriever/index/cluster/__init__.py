"""The engine of many machines, a Qdrant server."""

from __future__ import annotations
