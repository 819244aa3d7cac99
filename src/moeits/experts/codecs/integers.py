"""Integers of a few bits, packed into words of 32, with a scale and a zero point for every group of inputs."""

from collections.abc import Mapping
from math import prod

import numpy as np

from moeits.errors import UnscorableWeight
from moeits.experts.codecs import Decoded, Part
from moeits.experts.codecs.scales import finite_or_not

WORD = 32
WIDTHS = (2, 4, 8)
"""Bits of which a word holds a whole number of integers."""
FLOATS = ("F16", "BF16", "F32")

# Rows that are decoded at a time, and what that takes for each of their entries: values, zero points, scales.
_ROWS, _ROW_BYTES = 64, 4 * 4


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """(..., W) words -> (..., 32 W / bits) integers from 0, in uint8; the lowest bits of a word first."""
    octets = np.ascontiguousarray(words, words.dtype.newbyteorder("<")).view(np.uint8)
    of_octet = 8 // bits
    integers = np.empty((*octets.shape, of_octet), np.uint8)
    for place in range(of_octet):
        np.right_shift(octets, bits * place, out=integers[..., place])
    integers &= np.uint8(2**bits - 1)
    return integers.reshape(*words.shape[:-1], -1)


def dequantized(
    integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """value[r, c] = (integers[r, c] - zeros[r, g]) * scales[r, g] with g = group_of[c], in float32, rounded to dtype.

    integers (R, C); zeros and scales (R, G) float32. The difference is exact, so this is one rounding.
    """
    result = np.empty(integers.shape, dtype)
    for start in range(0, len(integers), _ROWS):
        some = slice(start, start + _ROWS)
        values = integers[some].astype(np.float32)
        values -= zeros[some][:, group_of]
        with finite_or_not():
            values *= scales[some][:, group_of]
            result[some] = values
    return result


def groups_of(inputs: int, groups: int, named: np.ndarray | None) -> np.ndarray:
    """(C,) the group of each input: as the checkpoint names it, else neighbours. Raises UnscorableWeight."""
    if named is None or (named < 0).all():
        return np.arange(inputs) // (inputs // groups)
    if named.shape != (inputs,) or named.min() < 0 or named.max() >= groups:
        raise UnscorableWeight(f"g_idx does not name one of {groups} groups for each of {inputs} inputs")
    return named


def decoded_size(parts: Mapping[str, Part], outputs: int, inputs: int, groups: int, dtype: np.dtype) -> Decoded:
    """What decoding such a weight gives and takes."""
    kept = sum(part.nbytes for part in parts.values())
    entries = outputs * inputs * (1 + dtype.itemsize)
    grids = 2 * 4 * outputs * groups + 8 * inputs
    return Decoded(
        shape=(outputs, inputs),
        itemsize=dtype.itemsize,
        held_bytes=kept + entries + grids + min(_ROWS, outputs) * _ROW_BYTES * inputs,
    )


def check_shapes(parts: Mapping[str, Part], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Parts have the shapes that the others ask for. Raises UnscorableWeight."""
    for name, shape in wanted.items():
        if name in parts and (parts[name].shape != shape or not prod(shape)):
            raise UnscorableWeight(
                f"{name} has shape {list(parts[name].shape)}, where the other parts of the weight ask for "
                f"{list(shape)}; download the checkpoint again, its config.json too"
            )
