"""Points: a passage in the words of Qdrant, which the embedded engine and the server share."""

from __future__ import annotations
