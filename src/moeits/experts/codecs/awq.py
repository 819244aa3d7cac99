"""AWQ weights in the form GEMM, four bits each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moeits.experts.codecs import Codec, Decoded, Part, dtype_of
from moeits.experts.codecs.integers import FLOATS, check_shapes, decoded_size, dequantized, groups_of, unpacked

_BITS, _OF_WORD = 4, 8
# Where in a word each of its eight integers is.
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]


@dataclass(frozen=True)
class Awq:
    """value = (integer - zero point) * scale of the input's group, as AutoAWQ's dequantize_gemm.

    `qweight` (C, R / 8) and `qzeros` (G, R / 8) are words along the outputs, the even ones first; `scales` (G, R).
    """

    name: ClassVar[str] = "awq"
    reads: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    rows_apart: ClassVar[bool] = False
    outputs_first: ClassVar[bool] = True

    def holds(self, parts: Mapping[str, Part]) -> bool:
        if not {"qweight", "qzeros", "scales"} <= parts.keys() or "g_idx" in parts:
            return False
        qweight, qzeros, scales = (parts[name] for name in self.reads)
        return (
            (qweight.dtype, qzeros.dtype) == ("I32", "I32")
            and scales.dtype in FLOATS
            and [len(part.shape) for part in (qweight, qzeros, scales)] == [2, 2, 2]
            and qweight.shape[1] * _OF_WORD == scales.shape[1]
        )

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:
        inputs, words = parts["qweight"].shape
        groups = parts["scales"].shape[0]
        fitting = groups if groups and inputs % groups == 0 else -1
        check_shapes(parts, {"qzeros": (groups, words), "scales": (fitting, words * _OF_WORD)})
        return decoded_size(parts, words * _OF_WORD, inputs, groups, dtype_of(config))

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        integers, zeros = _in_order(parts["qweight"]), _in_order(parts["qzeros"])
        scales = parts["scales"].T.astype(np.float32)
        group_of = groups_of(integers.shape[1], scales.shape[1], None)
        return dequantized(integers, zeros.astype(np.float32), scales, group_of, dtype_of(config))


def _in_order(words: np.ndarray) -> np.ndarray:
    """(K, R / 8) words -> (R, K) integers."""
    integers = unpacked(words, _BITS).reshape(len(words), -1, _OF_WORD)
    return integers[..., _PLACES].reshape(len(words), -1).T


CODEC: Codec = Awq()
