"""GPTQ weights, as AutoGPTQ and GPTQModel write them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moeits.experts.codecs import Codec, Decoded, Part, dtype_of, quantization_of
from moeits.experts.codecs.integers import (
    FLOATS,
    WIDTHS,
    WORD,
    check_shapes,
    decoded_size,
    dequantized,
    groups_of,
    unpacked,
)


@dataclass(frozen=True)
class Gptq:
    """value = (integer - zero point) * scale of the input's group, as GPTQModel's dequantize_weight.

    `qweight` (C b / 32, R) words along the inputs, `qzeros` (G, R b / 32) words along the outputs, `scales` (G, R),
    `g_idx` (C,). The first format keeps zero points less one, and the second (`gptq_v2`) as they are.
    """

    name: ClassVar[str] = "gptq"
    reads: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    rows_apart: ClassVar[bool] = False
    outputs_first: ClassVar[bool] = True

    def holds(self, parts: Mapping[str, Part]) -> bool:
        if not {"qweight", "qzeros", "scales"} <= parts.keys():
            return False
        qweight, qzeros, scales = (parts[name] for name in ("qweight", "qzeros", "scales"))
        return (
            (qweight.dtype, qzeros.dtype) == ("I32", "I32")
            and scales.dtype in FLOATS
            and [len(part.shape) for part in (qweight, qzeros, scales)] == [2, 2, 2]
            and qweight.shape[1] == scales.shape[1]
            and _bits(qzeros.shape, scales.shape) in WIDTHS
        )

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:
        words, outputs = parts["qweight"].shape
        groups, bits = parts["scales"].shape[0], _bits(parts["qzeros"].shape, parts["scales"].shape)
        inputs = words * WORD // bits
        check_shapes(parts, {"qzeros": (groups, parts["qzeros"].shape[1]), "g_idx": (inputs,)})
        if "g_idx" not in parts:
            check_shapes(parts, {"scales": (groups if groups and inputs % groups == 0 else -1, outputs)})
        return decoded_size(parts, outputs, inputs, groups, dtype_of(config))

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        scales, bits = parts["scales"], _bits(parts["qzeros"].shape, parts["scales"].shape)
        integers = unpacked(parts["qweight"].T, bits)
        zeros = parts["qzeros"].view(np.uint32)
        if "gptq_v2" not in (quantization_of(config).get(key) for key in ("checkpoint_format", "format")):
            # One more in each of a word's integers; from the last one of all the next one takes a carry, as it is
            # written by subtracting from whole words too.
            zeros = zeros + np.uint32(sum(1 << place for place in range(0, WORD, bits)))
        group_of = groups_of(integers.shape[1], len(scales), parts.get("g_idx"))
        of_outputs = unpacked(zeros, bits).T.astype(np.float32)
        return dequantized(integers, of_outputs, scales.T.astype(np.float32), group_of, dtype_of(config))


def _bits(qzeros: tuple[int, ...], scales: tuple[int, ...]) -> int:
    """Bits of an integer, by the zero points of all outputs: rules of `dynamic` may give modules different ones."""
    bits, rest = divmod(qzeros[1] * WORD, scales[1] or 1)
    return 0 if rest else bits


CODEC: Codec = Gptq()
