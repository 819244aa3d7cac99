"""NVFP4 weights: four bits each, an FP8 scale for every 16 neighbours of a row, and one scale for all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from moeits.errors import UnscorableWeight
from moeits.experts.codecs import Codec, Decoded, Part, dtype_of
from moeits.experts.codecs.e2m1 import OF_BYTE
from moeits.experts.codecs.scales import finite_or_not

# By ModelOpt and by compressed-tensors: the bytes, and the scale of all. One multiplies by it, the other divides.
_FORMS = (("weight", "scale_2"), ("packed", "global_scale"))
# Rows that are decoded at a time, and what that takes for each of their entries: indices, values, products.
_ROWS, _ROW_BYTES = 64, 3 * 4


@dataclass(frozen=True)
class Nvfp4:
    """value = E2M1 * (scale * weight_scale_2), or E2M1 * (scale / weight_global_scale), in float32.

    As ModelOpt's NVFP4QTensor.dequantize and compressed-tensors' NVFP4PackedCompressor. (R, C / 2) bytes, (R, C / 16)
    scales in F8_E4M3.
    """

    name: ClassVar[str] = "nvfp4"
    reads: ClassVar[tuple[str, ...]] = ("weight", "packed", "scale", "scale_2", "global_scale")
    rows_apart: ClassVar[bool] = False
    outputs_first: ClassVar[bool] = True

    def holds(self, parts: Mapping[str, Part]) -> bool:
        scale = parts.get("scale")
        return (
            scale is not None
            and scale.dtype == "F8_E4M3"
            and any(
                parts[octets].dtype == "U8" and parts[of_all].dtype == "F32"
                for octets, of_all in _FORMS
                if octets in parts and of_all in parts
            )
        )

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:
        octets, of_all = _form(parts)
        packed, scale = parts[octets], parts["scale"]
        if (
            [len(packed.shape), len(scale.shape), prod(parts[of_all].shape)] != [2, 2, 1]
            or packed.shape[0] != scale.shape[0]
            or not prod(scale.shape)
            or 2 * packed.shape[1] % scale.shape[1]
        ):
            raise UnscorableWeight(
                f"scales of shape {list(scale.shape)} do not fit packed numbers of shape {list(packed.shape)}; "
                "download the checkpoint again"
            )
        rows, columns, itemsize = packed.shape[0], 2 * packed.shape[1], dtype_of(config).itemsize
        held = packed.nbytes + 5 * scale.nbytes + rows * columns * itemsize + min(rows, _ROWS) * _ROW_BYTES * columns
        return Decoded(shape=(rows, columns), itemsize=itemsize, held_bytes=held)

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        octets, of_all = _form(parts)
        packed, scales, of_all_scales = parts[octets], parts["scale"].astype(np.float32), parts[of_all].reshape(())
        with finite_or_not():
            scales = scales * of_all_scales if of_all == "scale_2" else scales / of_all_scales
        rows, groups = scales.shape
        result = np.empty((rows, groups, 2 * packed.shape[1] // groups), dtype_of(config))
        for start in range(0, rows, _ROWS):
            some = slice(start, start + _ROWS)
            values = OF_BYTE[packed[some]].reshape(result[some].shape)
            with finite_or_not():
                result[some] = values * scales[some, :, None]
        return result.reshape(rows, -1)


def _form(parts: Mapping[str, Any]) -> tuple[str, str]:
    """What the bytes and the scale of all are called."""
    return next(form for form in _FORMS if set(form) <= parts.keys())


CODEC: Codec = Nvfp4()
