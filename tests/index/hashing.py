"""A small real encoder: every word has a fixed random direction and a term id."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from diffretriever.corpus import Passage
from diffretriever.encoder import PassageLike
from diffretriever.representations import FloatArray, Provenance, Representations, SlotWords

VOCABULARY = 997


class HashEncoder:
    """One slot per distinct word, up to K; an empty text gets no vectors and no terms."""

    def __init__(
        self,
        *,
        dim: int = 16,
        query_slots: int = 4,
        passage_slots: int = 6,
        fingerprint: str = "hash",
        term_idf: FloatArray | None = None,
    ) -> None:
        self._dim = dim
        self._slots = {"query": query_slots, "passage": passage_slots}
        self._fingerprint = fingerprint
        self._term_idf = term_idf
        self.encoded: list[int] = []

    @property
    def provenance(self) -> Provenance:
        return Provenance(
            model="hash", fingerprint=self._fingerprint, prompt="none", prompt_hash="0", protocol="default",
            readout="slot", query_slots=self._slots["query"], passage_slots=self._slots["passage"], steps=1,
            max_query_length=32, max_passage_length=64, dtype="float32", version="0",
        )  # fmt: skip

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def vocabulary_size(self) -> int:
        return VOCABULARY

    @property
    def term_idf(self) -> FloatArray | None:
        return self._term_idf

    def encode_queries(
        self, queries: str | Sequence[str], *, words: int = 0, progress: bool = False
    ) -> Representations:
        texts = [queries] if isinstance(queries, str) else list(queries)
        return self._encode(texts, self._slots["query"], words)

    def encode_passages(
        self, passages: str | Sequence[PassageLike], *, words: int = 0, progress: bool = False
    ) -> Representations:
        given = [passages] if isinstance(passages, str) else list(passages)
        self.encoded.append(len(given))
        return self._encode([_text(p) for p in given], self._slots["passage"], words)

    def term(self, term_id: int) -> str:
        return f"term{term_id}"

    def _encode(self, texts: Sequence[str], slots: int, words: int) -> Representations:
        tokens = [re.findall(r"\w+", text.lower()) for text in texts]
        kept = [list(dict.fromkeys(row))[:slots] for row in tokens]
        flat = [word for row in kept for word in row]
        dense = np.stack([_direction(word, self._dim) for word in flat]) if flat else np.zeros((0, self._dim))
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in kept])]).astype(np.int64)
        pooled = [dense[a:b].mean(0) if b > a else np.zeros(self._dim) for a, b in pairwise(offsets)]
        weights = np.zeros((len(texts), VOCABULARY), np.float32)
        for i, row in enumerate(tokens):
            for word in row:
                weights[i, _term(word)] += 1.0
        ids = np.array([[_term(w) + j for j in range(words)] for w in flat], np.int32).reshape(len(flat), words)
        return Representations(
            dense=dense.astype(np.float32),
            offsets=offsets,
            pooled=np.array(pooled, np.float32).reshape(len(texts), self._dim),
            sparse=sp.csr_matrix(weights),
            words=SlotWords(ids, np.full(ids.shape, 0.25, np.float32), {int(i): self.term(int(i)) for i in ids.flat})
            if words
            else None,
            provenance=self.provenance,
        )


def _text(passage: PassageLike) -> str:
    if isinstance(passage, Passage):
        return f"{passage.title} {passage.text}"
    return str(passage["text"]) if isinstance(passage, Mapping) else passage


def _term(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "replace")) % (VOCABULARY - 8)


def _direction(word: str, dim: int) -> np.ndarray:
    vector = np.random.default_rng(zlib.crc32(word.encode("utf-8", "replace"))).standard_normal(dim)
    return vector / np.linalg.norm(vector)


def random_representations(
    count: int, *, seed: int = 0, dim: int = 16, slots: tuple[int, int] = (0, 6), terms: int = 12
) -> Representations:
    """Return representations with ragged K in the space of `HashEncoder()`."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(slots[0], slots[1] + 1, size=count)
    dense = rng.standard_normal((int(lengths.sum()), dim)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pooled = [dense[a:b].mean(0) if b > a else np.zeros(dim) for a, b in pairwise(offsets)]
    sparse = np.zeros((count, VOCABULARY), np.float32)
    for row in sparse:
        row[rng.integers(0, 60, size=rng.integers(0, terms))] = rng.random() * 3
    return Representations(
        dense=dense,
        offsets=offsets,
        pooled=np.array(pooled, np.float32).reshape(count, dim),
        sparse=sp.csr_matrix(sparse),
        words=None,
        provenance=HashEncoder().provenance,
    )
