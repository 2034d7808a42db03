"""TermCounts: how rare terms are in an index, and what that makes of the term weights of queries."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass

import numpy as np

from diffretriever.errors import IndexFormatError
from diffretriever.idf import SAMPLE, document_frequencies, idf_factors
from diffretriever.index.calibration import GROWTH
from diffretriever.index.sampling import sample_passages
from diffretriever.index.store import Store
from diffretriever.representations import FloatArray

#: Note that keeps them with an index; an index without it leaves queries as they are.
TERM_COUNTS_NOTE = "term_counts.json"


@dataclass(frozen=True)
class TermCounts:
    """What an index knows of its terms.

    Attributes:
        model_idf: [V] how rare the model takes each term to be.
        passages: how many passages the index held when they were counted; 0 before that.
        factors: [V] what the term weights of queries are multiplied by; None before that.
    """

    model_idf: FloatArray
    passages: int = 0
    factors: FloatArray | None = None

    def fits(self, passages: int) -> bool:
        """Return whether they still hold for an index of so many passages."""
        return self.passages / GROWTH <= passages <= self.passages * GROWTH

    def counted(self, store: Store) -> TermCounts:
        """Return the counts of the passages of an index, of some of them where there are many."""
        size = len(store)
        sample = sample_passages(store, SAMPLE, np.random.default_rng(size))
        frequencies, texts = document_frequencies((s.representations for s in sample), len(self.model_idf))
        return TermCounts(self.model_idf, size, idf_factors(frequencies, texts, self.model_idf))

    def to_json(self) -> str:
        """Return them as JSON."""
        factors = None if self.factors is None else _packed(self.factors)
        return json.dumps({"model_idf": _packed(self.model_idf), "passages": self.passages, "factors": factors}) + "\n"

    @staticmethod
    def from_json(text: str) -> TermCounts:
        """Read what `to_json` wrote.

        Raises:
            IndexFormatError: it cannot be read.
        """
        try:
            about = json.loads(text)
            model, factors = _unpacked(about["model_idf"]), about["factors"]
            return TermCounts(model, int(about["passages"]), None if factors is None else _unpacked(factors))
        except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
            raise IndexFormatError(
                f"the note {TERM_COUNTS_NOTE} of the index is damaged ({error}); restore it from a copy, or remove it "
                "to search with the model's own idf"
            ) from error


def _packed(numbers: FloatArray) -> str:
    return base64.b64encode(zlib.compress(numbers.astype("<f4").tobytes())).decode()


def _unpacked(text: str) -> FloatArray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<f4").astype(np.float32)
