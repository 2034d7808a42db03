"""Storage: in what form an index keeps the vectors of its passages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from diffretriever.errors import InputError

Dtype = Literal["float32", "float16", "int8", "binary"]
Codes = Literal["int8", "binary"]
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Storage:
    """How the vectors are stored.

    Attributes:
        dtype: what is kept of a slot's vector: "float32" or "float16" numbers; or, in the exact backend, "int8" (one
            byte a number and a scale) or "binary" (one bit a number and a scale). Nothing finer is kept beside these
            two: scores are those of the rounded vectors.
        codes: "int8" or "binary" codes, held in memory beside the vectors, choose candidates, which the vectors, left
            on disk, then score exactly (edge backend); None for no codes.
        pca: dimensions that are kept of each vector, by principal components of a sample; None keeps all. The others
            are gone: scores are those of the projected vectors.
        drop: a slot's vector whose cosine to an earlier one of the same passage is greater than this is left out;
            None keeps all.
    """

    dtype: Dtype = "float16"
    codes: Codes | None = None
    pca: int | None = None
    drop: float | None = None

    @property
    def precision(self) -> Precision:
        """Precision of pooled vectors, of queries, and of slot vectors that are kept as floating-point numbers."""
        return "float32" if self.dtype == "float32" else "float16"

    @property
    def is_coarse(self) -> bool:
        """Whether slot vectors are kept as int8 numbers or bits alone."""
        return self.dtype in ("int8", "binary")

    def without_codes(self) -> Storage:
        """Return how the vectors are stored, apart from codes."""
        return replace(self, codes=None)

    def width(self, dim: int) -> int:
        """Return how many dimensions the stored vectors have, of `dim` that the encoder gives."""
        return self.pca if self.pca is not None else dim

    def vector_bytes(self, dim: int) -> float:
        """Return the bytes that one slot's vector takes on disk, codes included."""
        width = self.width(dim)
        kept = {"float32": 4.0 * width, "float16": 2.0 * width, "int8": width + 4.0, "binary": (width + 7) // 8 + 4.0}
        return kept[self.dtype] + self.code_bytes(dim)

    def code_bytes(self, dim: int) -> float:
        """Return the bytes that the codes of one slot's vector take."""
        return {None: 0.0, "int8": 1.0, "binary": 0.125}[self.codes] * self.width(dim)

    def check(self, dim: int, backend: str) -> None:
        """Raise InputError when an option cannot be used with vectors of `dim` dimensions, or with the backend."""
        if self.dtype not in get_args(Dtype):
            raise InputError(f"storage must be one of {', '.join(get_args(Dtype))}, got {self.dtype!r}")
        if self.codes not in (None, *get_args(Codes)):
            raise InputError(f"codes must be one of {', '.join(get_args(Codes))}, got {self.codes!r}")
        if self.is_coarse and backend != "exact":
            raise InputError(
                f"storage {self.dtype!r} needs the exact backend; {backend} keeps float16 or float32, to which "
                f"codes={self.dtype!r} can be added in the edge backend"
            )
        if self.codes is not None and backend != "edge":
            raise InputError(f"codes need the edge backend; {backend} has none")
        if self.pca is not None and not 1 <= self.pca < max(dim, 2):
            raise InputError(f"pca must be 1 to {dim - 1}, less than the dimensions of the vectors, got {self.pca}")
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
        storage = Storage(**{name: about[name] for name in ("dtype", "codes", "pca", "drop")})
        types = (
            storage.dtype in get_args(Dtype),
            storage.codes in (None, *get_args(Codes)),
            isinstance(storage.pca, int | None),
            isinstance(storage.drop, float | int | None),
        )
        if not all(types):
            raise ValueError(f"storage {dict(about)!r} is not known")
        return storage

    def __str__(self) -> str:
        named = (("codes", self.codes), ("pca", self.pca), ("drop", self.drop))
        return ", ".join([self.dtype, *(f"{name} {value}" for name, value in named if value is not None)])
