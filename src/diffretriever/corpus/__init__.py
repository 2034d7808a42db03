"""Corpora: passages and queries read from files, one at a time, every bad line named."""

from __future__ import annotations

from diffretriever.corpus.passage import MetadataValue, Passage
from diffretriever.corpus.problems import Problem
from diffretriever.corpus.queries import Query, read_queries
from diffretriever.corpus.reader import PassageReader, read_passages

__all__ = ["MetadataValue", "Passage", "PassageReader", "Problem", "Query", "read_passages", "read_queries"]
