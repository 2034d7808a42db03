"""Storage: in what form an index keeps the vectors of its passages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from diffretriever.errors import InputError

Dtype = Literal["float32", "float16", "int8", "binary"]
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Storage:
    """How the vectors are stored.

    Attributes:
        dtype: "float32" or "float16"; or "int8" or "binary": such codes, held in memory, choose candidates, which the
            float16 vectors, left on disk, then score (edge backend).
        pca: dimensions that are kept of each vector, by principal components of a sample; None keeps all. The others
            are gone: scores are those of the projected vectors.
        drop: a slot's vector whose cosine to an earlier one of the same passage is greater than this is left out;
            None keeps all.
    """

    dtype: Dtype = "float16"
    pca: int | None = None
    drop: float | None = None

    @property
    def precision(self) -> Precision:
        """Precision of the vectors as they are compared in the end, and of the pooled ones."""
        return "float32" if self.dtype == "float32" else "float16"

    @property
    def has_codes(self) -> bool:
        """Whether codes are kept beside the vectors, to choose candidates."""
        return self.dtype in ("int8", "binary")

    def without_codes(self) -> Storage:
        """Return how the vectors are stored, apart from codes."""
        return replace(self, dtype=self.precision)

    def width(self, dim: int) -> int:
        """Return how many dimensions the stored vectors have, of `dim` that the encoder gives."""
        return self.pca if self.pca is not None else dim

    def check(self, dim: int, backend: str) -> None:
        """Raise InputError when an option cannot be used with vectors of `dim` dimensions, or with the backend."""
        if self.dtype not in get_args(Dtype):
            raise InputError(f"storage must be one of {', '.join(get_args(Dtype))}, got {self.dtype!r}")
        if self.has_codes and backend != "edge":
            raise InputError(f"storage {self.dtype!r} needs the edge backend; {backend} keeps float16 or float32")
        if self.pca is not None and not 1 <= self.pca < max(dim, 2):
            raise InputError(f"pca must be 1 to {dim - 1}, less than the dimensions of the vectors, got {self.pca}")
        if self.pca is not None and self.has_codes:
            raise InputError(f"pca goes with float16 or float32, got {self.dtype!r}")
        if self.drop is not None and not 0.0 < self.drop <= 1.0:
            raise InputError(f"drop is a cosine above 0 and at most 1, got {self.drop}")

    @staticmethod
    def of(storage: Storage | str) -> Storage:
        """Return the storage itself, or the one of a dtype's name."""
        return storage if isinstance(storage, Storage) else Storage(cast(Dtype, storage))

    @staticmethod
    def from_mapping(about: object) -> Storage:
        """Read what `dataclasses.asdict` gave.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(about, Mapping):
            raise ValueError(f"storage {about!r} is not known")
        storage = Storage(**{name: about[name] for name in ("dtype", "pca", "drop")})
        types = (storage.dtype in get_args(Dtype), isinstance(storage.pca, int | None))
        if not all((*types, isinstance(storage.drop, float | int | None))):
            raise ValueError(f"storage {dict(about)!r} is not known")
        return storage

    def __str__(self) -> str:
        parts = [self.dtype, *([f"pca {self.pca}"] if self.pca else []), *([f"drop {self.drop}"] if self.drop else [])]
        return ", ".join(parts)
