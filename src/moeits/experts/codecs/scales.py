"""Scales of packed weights: numbers, or exponents of two."""

from contextlib import AbstractContextManager

import numpy as np

EXPONENTS = ("U8", "F8_E8M0")
SCALE_DTYPES = ("F32", "BF16", "F16", *EXPONENTS)

# E8M0: a byte b is 2^(b - 127), and 255 is not a number. Plain bytes mean the same: the name came later.
_OF_BYTE = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan))


def as_float32(scale: np.ndarray) -> np.ndarray:
    """Scales as numbers, (...) float32."""
    if scale.dtype.itemsize > 1:
        return scale.astype(np.float32)
    return _OF_BYTE[scale.view(np.uint8)]


def finite_or_not() -> AbstractContextManager[None]:
    """What does not fit its dtype becomes infinite in silence: whoever computes with it refuses it by name."""
    return np.errstate(over="ignore", invalid="ignore")
