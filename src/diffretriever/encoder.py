"""Encoder: what every system gives to the index, the command line and the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from diffretriever.corpus import Passage
from diffretriever.representations import FloatArray, Provenance, Representations

PassageLike = str | Passage | Mapping[str, object]


@runtime_checkable
class Encoder(Protocol):
    """Turns queries and passages into `Representations`."""

    @property
    def provenance(self) -> Provenance:
        """How this encoder makes its numbers."""
        ...

    @property
    def dim(self) -> int:
        """Width D of the dense vectors; 0 when there are none."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Number V of columns of the sparse representations."""
        ...

    @property
    def term_idf(self) -> FloatArray | None:
        """[V] how rare the model takes each term to be, in any unit; None where that is not known. See `idf`."""
        ...

    def encode_queries(
        self, queries: str | Sequence[str], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N queries; `words` asks for that many predicted words per slot."""
        ...

    def encode_passages(
        self, passages: PassageLike | Sequence[PassageLike], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N passages, row i for passage i."""
        ...

    def term(self, term_id: int) -> str:
        """Return the readable text of a vocabulary id."""
        ...
