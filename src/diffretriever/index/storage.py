"""Storage: in what form an index keeps the vectors of its passages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from diffretriever.errors import InputError

Dtype = Literal["float32", "float16", "int8", "binary"]
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Storage:
    """How the vectors are stored.

    Attributes:
        dtype: numbers of a vector: "float32", "float16", "int8" (one byte and a scale per vector) or "binary" (one
            bit and a scale per vector).
        pca: dimensions that are kept of each vector, by principal components of a sample; None keeps all.
        drop: a slot's vector whose cosine to an earlier one of the same passage is greater than this is left out;
            None keeps all.
        rescore: where dtype or pca lose something, also keep the float16 vectors: the lossy ones then only choose
            candidates, and the scores are those of a float16 index. False saves their space.
    """

    dtype: Dtype = "float16"
    pca: int | None = None
    drop: float | None = None
    rescore: bool = True

    @property
    def precision(self) -> Precision:
        """Precision of the vectors as they are compared in the end, and of the pooled ones."""
        return "float32" if self.dtype == "float32" else "float16"

    @property
    def is_lossy(self) -> bool:
        """Whether the stored form says less than float16 vectors."""
        return self.dtype in ("int8", "binary") or self.pca is not None

    @property
    def has_codes(self) -> bool:
        """Whether lossy vectors are kept beside the float16 ones, to choose candidates."""
        return self.is_lossy and self.rescore

    def check(self, dim: int) -> None:
        """Raise InputError when an option cannot be used with vectors of `dim` dimensions."""
        if self.dtype not in get_args(Dtype):
            raise InputError(f"storage must be one of {', '.join(get_args(Dtype))}, got {self.dtype!r}")
        if self.pca is not None and not 1 <= self.pca < max(dim, 2):
            raise InputError(
                f"pca must be at least 1 and less than the {dim} dimensions of the vectors, got {self.pca}"
            )
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
        storage = Storage(**{name: about[name] for name in ("dtype", "pca", "drop", "rescore")})
        types = (storage.dtype in get_args(Dtype), isinstance(storage.pca, int | None))
        if not all((*types, isinstance(storage.drop, float | int | None), isinstance(storage.rescore, bool))):
            raise ValueError(f"storage {dict(about)!r} is not known")
        return storage

    def __str__(self) -> str:
        parts = [self.dtype, *([f"pca {self.pca}"] if self.pca else []), *([f"drop {self.drop}"] if self.drop else [])]
        return ", ".join([*parts, "rescored"] if self.has_codes else parts)
