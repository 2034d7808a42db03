"""Coarse vectors: one byte or one bit a number, and a scale for each vector.

* int8: numbers are multiples of the vector's scale, its largest magnitude over 127.
* binary: numbers are plus or minus the vector's scale, `|x|^2 / sum |x_i|`: its product with x itself is right.

Both are fixed points: vectors that were unpacked pack to the same codes and scale, so an index can be copied and merged
without losing anything more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from diffretriever.representations import FloatArray

Form = Literal["int8", "binary"]
Codes = npt.NDArray[np.int8] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Coarse:
    """Packed vectors.

    Attributes:
        codes: [T, D] int8 numbers, or [T, ceil(D / 8)] bytes of bits.
        scales: [T] what a number is a multiple of.
    """

    codes: Codes
    scales: FloatArray


def pack(vectors: FloatArray, form: Form) -> Coarse:
    """Return vectors [T, D] in a coarse form."""
    magnitudes = np.abs(vectors)
    if form == "int8":
        scales = _short_scales(magnitudes.max(axis=1, initial=0.0))
        return Coarse(np.rint(vectors / scales[:, None]).astype(np.int8), scales)
    # Double precision makes the scale of unpacked vectors come out as it was.
    sums = magnitudes.sum(axis=1, dtype=np.float64)
    squares = np.square(magnitudes, dtype=np.float64).sum(axis=1)
    scales = np.divide(squares, sums, out=np.zeros_like(sums), where=sums > 0).astype(np.float32)
    return Coarse(np.packbits(vectors >= 0, axis=1), scales)


def unpack(coarse: Coarse, dim: int, out: FloatArray | None = None) -> FloatArray:
    """Return the vectors [T, D] that the codes stand for, in `out` if that is given."""
    if coarse.codes.dtype == np.int8:
        return cast(FloatArray, np.multiply(coarse.codes, coarse.scales[:, None], out=out, dtype=np.float32))
    signs = np.unpackbits(cast(npt.NDArray[np.uint8], coarse.codes), axis=1, count=dim).astype(np.float32)
    return cast(FloatArray, np.multiply(2 * signs - 1, coarse.scales[:, None], out=out))


def coarse_width(form: Form, dim: int) -> int:
    """Return how many bytes the codes of one vector take."""
    return dim if form == "int8" else (dim + 7) // 8


def _short_scales(largest: FloatArray) -> FloatArray:
    """Return a 127th of each magnitude, rounded up to 16 bits, so that its product with a code is exact."""
    scales = (largest / np.float32(127)).astype(np.float32)
    raised = (scales.view(np.uint32) + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)
    return cast(FloatArray, np.where(largest > 0, raised.view(np.float32), np.float32(1)))
