"""The entries of a weight as numbers to compute with, a piece at a time."""

from collections.abc import Iterable, Iterator

import numpy as np

from moeits.checkpoint.reading import DTYPES, FLOATS
from moeits.errors import NonFiniteWeight, UnscorableWeight

_PIECE = 1 << 18
_FLOATS = {DTYPES[name].name for name in FLOATS}


def piece_bytes(entries: int) -> int:
    """Bytes that a thread takes, at most, that sums over the pieces of weights of so many entries: one, its copies."""
    return 4 * 8 * min(entries, _PIECE)


def pieces(weights: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """All entries of some weights, one weight after another, as float64 arrays of limited size.

    Raises NonFiniteWeight on NaN or infinity, UnscorableWeight for another dtype than a float's, or no entries.
    """
    for weight in weights:
        if weight.dtype.name not in _FLOATS:
            raise UnscorableWeight(f"weights of dtype {weight.dtype} cannot be scored")
        if not weight.size:
            raise UnscorableWeight("the weight is empty")
        flat = weight.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE].astype(np.float64)
            if not np.isfinite(piece).all():
                raise NonFiniteWeight("the weight holds NaN or infinity")
            yield piece
