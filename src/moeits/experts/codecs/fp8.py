"""FP8 weights with scales: by blocks (DeepSeek-V3, Qwen3 FP8, MiniMax-M2), by rows, or one for the whole weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from moeits.errors import UnscorableWeight
from moeits.experts.codecs import Codec, Decoded, Part, dtype_of, quantization_of
from moeits.experts.codecs.scales import SCALE_DTYPES, as_float32, finite_or_not

_WEIGHTS = ("F8_E4M3", "F8_E5M2")
_SCALES = ("scale_inv", "scale")
# Rows that are decoded at a time, and the float32 values of each of their entries: of the table, scale, product.
_ROWS, _ROW_BYTES = 64, 3 * 4
_BYTES = 256


@dataclass(frozen=True)
class Fp8:
    """value = weight * scale in float32, rounded to the model's dtype, as transformers' Fp8Dequantize does.

    A scale is of a block of the weight: of `weight_block_size` of the quantization config, the last ones cut off at the
    edges, otherwise of equal blocks. `weight_scale_inv` is DeepSeek's name for what is multiplied all the same.
    """

    name: ClassVar[str] = "fp8"
    reads: ClassVar[tuple[str, ...]] = ("weight", *_SCALES)
    rows_apart: ClassVar[bool] = False
    outputs_first: ClassVar[bool] = False

    def holds(self, parts: Mapping[str, Part]) -> bool:
        scales = [parts[name] for name in _SCALES if name in parts]
        weight = parts.get("weight")
        return (
            weight is not None
            and weight.dtype in _WEIGHTS
            and [scale.dtype in SCALE_DTYPES for scale in scales] == [True]
        )

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:
        weight, scale = parts["weight"], next(parts[name] for name in _SCALES if name in parts)
        _block(weight.shape, _grid(scale.shape), config)
        itemsize = dtype_of(config).itemsize
        grid, result = _grid(scale.shape), prod(weight.shape) * itemsize
        if _by_table(grid, weight.shape):
            # While tables are made the result is not there yet.
            entries = prod(grid) * _BYTES
            working = max(entries * (4 + itemsize), entries * itemsize + result)
        else:
            working = result + 4 * grid[0] * weight.shape[-1] + _ROWS * _ROW_BYTES * weight.shape[-1]
        held = weight.nbytes + scale.nbytes + working
        return Decoded(shape=weight.shape, itemsize=itemsize, held_bytes=held)

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        weight, scale = parts["weight"], next(parts[name] for name in _SCALES if name in parts)
        grid = as_float32(scale).reshape(_grid(scale.shape))
        block, dtype = _block(weight.shape, grid.shape, config), dtype_of(config)
        if _by_table(grid.shape, weight.shape):
            return _look_up(weight, grid, block, dtype)
        return _multiply(weight, grid, block, dtype)


def _by_table(grid: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a weight has more entries than its blocks can have different numbers."""
    return prod(grid) * _BYTES <= prod(shape)


def _look_up(weight: np.ndarray, grid: np.ndarray, block: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """By a table of the 256 numbers of each block, each multiplied and rounded once, three times as fast."""
    from moeits.experts.codecs.byte_tables import look_up

    with finite_or_not():
        tables = (_values(weight.dtype) * grid[..., None]).astype(dtype)
    return look_up(weight.view(np.uint8), tables.view(f"u{dtype.itemsize}"), block).view(dtype)


def _multiply(weight: np.ndarray, grid: np.ndarray, block: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    height, width = block
    across = np.repeat(grid, width, axis=1)[:, : weight.shape[1]]
    value_of, result = _values(weight.dtype), np.empty(weight.shape, dtype)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, min(start + _ROWS, len(weight)))
        scales = across[np.arange(rows.start, rows.stop) // height]
        with finite_or_not():
            result[rows] = value_of[weight[rows].view(np.uint8)] * scales
    return result


def _values(dtype: np.dtype) -> np.ndarray:
    """(256,) float32: the number of each byte."""
    return np.arange(_BYTES, dtype=np.uint16).astype(np.uint8).view(dtype).astype(np.float32)


def _grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Scales as (rows of blocks, columns of blocks): one for all, one for each row, or one for each block."""
    return (*shape, *(1,) * (2 - len(shape)))


def _block(shape: tuple[int, ...], grid: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the weight that have one scale."""
    if len(shape) == len(grid) == 2 and all(grid):
        if (asked := _asked_block(config)) and grid == tuple(
            -(-size // of) for size, of in zip(shape, asked, strict=True)
        ):
            return min(asked[0], shape[0]), min(asked[1], shape[1])
        if all(size % count == 0 for size, count in zip(shape, grid, strict=True)):
            return shape[0] // grid[0], shape[1] // grid[1]
    raise UnscorableWeight(
        f"scales of shape {list(grid)} do not fit a weight of shape {list(shape)}; download the checkpoint again, its "
        "config.json too"
    )


def _asked_block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """`weight_block_size` of the quantization config, if it has one."""
    asked = quantization_of(config).get("weight_block_size")
    if isinstance(asked, list) and [*map(type, asked)] == [int, int] and min(asked) > 0:
        return asked[0], asked[1]
    return None


CODEC: Codec = Fp8()
