"""MXFP4 weights (OCP Microscaling Formats 1.0): four bits each, and an exponent for every 32 neighbours of a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, TypeVar

import numpy as np

from moeits.errors import UnscorableWeight
from moeits.experts.codecs import Codec, Decoded, Part, dtype_of
from moeits.experts.codecs.e2m1 import OF_BYTE
from moeits.experts.codecs.scales import EXPONENTS, as_float32, finite_or_not

Tensor = TypeVar("Tensor")

_BLOCK_BYTES = 16
# Rows that are decoded at a time, and what that takes for each of their entries: indices, values, products.
_ROWS, _ROW_BYTES = 64, 3 * 4


@dataclass(frozen=True)
class Mxfp4:
    """value = 2^(scale - 127) * E2M1, exact in bfloat16; as transformers' convert_moe_packed_tensors.

    gpt-oss: `gate_up_proj_blocks` (E, R, G, 16) and `gate_up_proj_scales` (E, R, G), a row each output.
    DeepSeek-V4, expert by expert: `weight` (R, 16 G) and `scale` (R, G); compressed-tensors: `weight_packed` and
    `weight_scale`.
    """

    name: ClassVar[str] = "mxfp4"
    reads: ClassVar[tuple[str, ...]] = ("blocks", "scales", "weight", "packed", "scale")
    rows_apart: ClassVar[bool] = False
    outputs_first: ClassVar[bool] = True

    def holds(self, parts: Mapping[str, Part]) -> bool:
        pair = _pair(parts)
        return pair is not None and pair[0].dtype in {"U8", "I8"} and pair[1].dtype in EXPONENTS

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:
        pair = _pair(parts)
        assert pair is not None
        blocks, scales = pair
        if len(scales.shape) != 2 or prod(blocks.shape) != _BLOCK_BYTES * prod(scales.shape):
            raise UnscorableWeight(
                f"scales of shape {list(scales.shape)} do not fit blocks of shape {list(blocks.shape)}; download the "
                "checkpoint again"
            )
        rows, columns = scales.shape[0], 2 * _BLOCK_BYTES * scales.shape[1]
        itemsize = dtype_of(config).itemsize
        held = blocks.nbytes + 5 * scales.nbytes + rows * columns * itemsize + _ROWS * _ROW_BYTES * columns
        return Decoded(shape=(rows, columns), itemsize=itemsize, held_bytes=held)

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        pair = _pair(parts)
        assert pair is not None
        scales = as_float32(pair[1])
        rows, of_row = scales.shape
        blocks = pair[0].view(np.uint8).reshape(rows, of_row, _BLOCK_BYTES)
        result = np.empty((rows, of_row, 2 * _BLOCK_BYTES), dtype_of(config))
        for start in range(0, rows, _ROWS):
            some = slice(start, start + _ROWS)
            values = OF_BYTE[blocks[some]].reshape(result[some].shape)
            with finite_or_not():
                result[some] = values * scales[some, :, None]
        return result.reshape(rows, -1)


def _pair(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Blocks and their scales, by whichever names."""
    for blocks, scales in (("blocks", "scales"), ("weight", "scale"), ("packed", "scale")):
        if blocks in parts and scales in parts:
            return parts[blocks], parts[scales]
    return None


CODEC: Codec = Mxfp4()
