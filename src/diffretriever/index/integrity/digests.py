"""Digests: what a passage was when it was written, in 16 bytes; and a checksum of a whole index.

The digest covers everything a search or a reader can get back: id, title, text, slot words, the numbers as they are
stored, metadata. It does not depend on the engine, nor on the order in which passages were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from diffretriever.corpus import Passage
from diffretriever.index.points.slot_words import words_to_json
from diffretriever.index.store import Metadata
from diffretriever.representations import Representations

SIZE = 16


@dataclass(frozen=True)
class Checksum:
    """How many passages there are, and what they are, whatever their order.

    Attributes:
        passages: number of passages.
        digest: exclusive or of the digests of all passages, in hexadecimal digits.
    """

    passages: int
    digest: str

    @staticmethod
    def of(digests: Iterable[bytes]) -> Checksum:
        """Return the checksum of passages by their digests."""
        count = total = 0
        for digest in digests:
            count += 1
            total ^= int.from_bytes(digest, "big")
        return Checksum(count, f"{total:0{2 * SIZE}x}")

    def __str__(self) -> str:
        return f"{self.passages}-{self.digest}"


def content_digest(passage: Passage, representations: Representations, i: int) -> bytes:
    """Return the digest of passage i but for its metadata; the numbers must be those that are stored."""
    r, state = representations, blake2b(digest_size=SIZE)
    for text in (passage.passage_id, passage.title, passage.text, words_to_json(r, i)):
        _feed(state, text.encode())
    vectors = r.vectors(i)
    span = slice(int(r.sparse.indptr[i]), int(r.sparse.indptr[i + 1]))
    # A passage without vectors has no pooled vector in every engine.
    pooled = r.pooled[i] if len(vectors) else r.pooled[i][:0]
    for numbers in (vectors, pooled, r.sparse.data[span]):
        # Adding 0 makes -0.0, which not every engine keeps, 0.0.
        _feed(state, (numbers.astype("<f4") + np.float32(0)).tobytes())
    _feed(state, r.sparse.indices[span].astype("<i4").tobytes())
    return state.digest()


def metadata_digest(metadata: Metadata) -> bytes:
    """Return the digest of a passage's metadata."""
    return blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=SIZE).digest()


def whole_digest(content: bytes, metadata: bytes) -> bytes:
    """Return the digest of a passage by those of its content and of its metadata."""
    return blake2b(content + metadata, digest_size=SIZE).digest()


def passage_digest(passage: Passage, representations: Representations, i: int) -> bytes:
    """Return the digest of passage i and its metadata."""
    return whole_digest(content_digest(passage, representations, i), metadata_digest(passage.metadata))


def _feed(state: blake2b, part: bytes) -> None:
    # The length keeps ("ab", "c") apart from ("a", "bc").
    state.update(len(part).to_bytes(8, "little"))
    state.update(part)
