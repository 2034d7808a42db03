"""Vectors: the slot vectors of a segment in the form of its storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from diffretriever.index.storage.coarse import Coarse, Codes, Form, coarse_width, pack, unpack
from diffretriever.index.storage.storage import Storage
from diffretriever.representations import FloatArray

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Vectors:
    """T vectors of D dimensions, in memory or memory-mapped; a slice of them is read as floating-point numbers.

    Attributes:
        numbers: [T, D] floating-point numbers, or the codes of coarse vectors.
        scales: [T] the scales of coarse vectors; None for others.
        dim: the dimensions D.
    """

    numbers: Array
    scales: Array | None
    dim: int

    @staticmethod
    def of(vectors: FloatArray, storage: Storage) -> Vectors:
        """Return vectors that the storage has rounded already."""
        if not storage.is_coarse:
            return Vectors(vectors.astype(storage.precision), None, vectors.shape[1])
        coarse = pack(vectors, cast(Form, storage.dtype))
        return Vectors(coarse.codes, coarse.scales, vectors.shape[1])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> Array:
        if self.scales is None:
            return self.numbers[rows]
        codes, scales = cast(Codes, self.numbers[rows]), cast(FloatArray, self.scales[rows])
        return unpack(Coarse(codes, scales), self.dim)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of the numbers that are read."""
        return self.numbers.dtype if self.scales is None else np.dtype(np.float32)

    def take(self, rows: slice | npt.NDArray[np.integer], *, axis: int, out: Array, mode: str) -> Array:
        """Read some rows into an array; `numpy.take` calls this."""
        if self.scales is None:
            out[:] = self.numbers[rows]
            return out
        codes, scales = cast(Codes, self.numbers[rows]), cast(FloatArray, self.scales[rows])
        return unpack(Coarse(codes, scales), self.dim, cast(FloatArray, out))

    @property
    def blocks(self) -> Array:
        """The vectors as an array that is read block by block, by slices or `numpy.take`."""
        return self.numbers if self.scales is None else cast(Array, self)


def check_form(numbers: Array, scales: Array | None, storage: Storage, dim: int) -> None:
    """Raise ValueError unless arrays are those of vectors of a storage."""
    if storage.is_coarse:
        form = cast(Form, storage.dtype)
        dtype, width = "int8" if form == "int8" else "uint8", coarse_width(form, dim)
    else:
        dtype, width = storage.precision, dim
    if numbers.dtype != dtype or numbers.ndim != 2 or numbers.shape[1] != width:
        raise ValueError(f"its vectors are {numbers.dtype} {list(numbers.shape)} where {dtype} [_, {width}] are due")
    if scales is not None and scales.shape != (len(numbers),):
        raise ValueError("its files disagree on the number of vectors")
