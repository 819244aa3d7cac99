"""Integers packed by compressed-tensors (`pack-quantized`, wNa16): Kimi-K2-Thinking, and what llm-compressor writes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moeits.errors import UnscorableWeight
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
class PackQuantized:
    """value = (integer - zero point) * scale, as compressed-tensors' PackedQuantizationCompressor.

    `weight_packed` (R, C b / 32) words along the inputs, `weight_scale` (R, G), `weight_zero_point` (R b / 32, G) words
    along the outputs; without one the zero point is the middle, 2^(b - 1). How many bits is said by config.json.
    """

    name: ClassVar[str] = "pack-quantized"
    reads: ClassVar[tuple[str, ...]] = ("packed", "scale", "zero_point", "shape", "g_idx")
    rows_apart: ClassVar[bool] = False
    outputs_first: ClassVar[bool] = True

    def holds(self, parts: Mapping[str, Part]) -> bool:
        packed, scale, zero = (parts.get(name) for name in ("packed", "scale", "zero_point"))
        return (
            packed is not None
            and packed.dtype == "I32"
            and scale is not None
            and scale.dtype in FLOATS
            and (zero is None or zero.dtype == "I32")
        )

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:
        packed, scale = parts["packed"], parts["scale"]
        if len(packed.shape) != 2 or len(scale.shape) != 2 or not packed.shape[1]:
            raise UnscorableWeight(f"packed integers of shape {list(packed.shape)} are not those of a matrix")
        bits = _bits(packed.shape[1], scale.shape[1], config)
        outputs, inputs, groups = packed.shape[0], packed.shape[1] * WORD // bits, scale.shape[1]
        if not groups or inputs % groups:
            raise UnscorableWeight(f"scales of shape {list(scale.shape)} do not fit {inputs} inputs of {bits} bits")
        check_shapes(parts, {"scale": (outputs, groups), "zero_point": (-(-outputs * bits // WORD), groups)})
        return decoded_size(parts, outputs, inputs, groups, dtype_of(config))

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        scales = parts["scale"].astype(np.float32)
        bits = _bits(parts["packed"].shape[1], scales.shape[1], config)
        integers = unpacked(parts["packed"], bits)
        if "shape" in parts and parts["shape"].tolist() != [*integers.shape]:
            raise UnscorableWeight(
                f"weight_shape says {parts['shape'].tolist()}, but the integers are {list(integers.shape)}"
            )
        zeros = np.full(scales.shape, 2 ** (bits - 1), np.float32)
        if "zero_point" in parts:
            zeros = unpacked(parts["zero_point"].T, bits).T[: len(scales)].astype(np.float32)
        group_of = groups_of(integers.shape[1], scales.shape[1], parts.get("g_idx"))
        return dequantized(integers, zeros, scales, group_of, dtype_of(config))


def _bits(words: int, groups: int, config: Mapping[str, Any]) -> int:
    """Bits of an integer: the one width of the config's groups by which inputs and scales fit. Raises UnscorableWeight.

    Of several schemes (4 bits here, 8 there) the size of their groups tells them apart; one without groups has one
    scale for each row.
    """
    widths = {
        bits for bits, size in _schemes(config) if (words * WORD == bits * groups * size if size else groups == 1)
    }
    if len(widths) > 1:
        raise UnscorableWeight(
            f"by config_groups in config.json an integer may have {' or '.join(map(str, sorted(widths)))} bits, which "
            "its groups do not tell apart; score another release of the model"
        )
    if not widths:
        raise UnscorableWeight(
            "how many bits an integer has is not said by config_groups in config.json in a way that fits; "
            "download config.json again"
        )
    return widths.pop()


def _schemes(config: Mapping[str, Any]) -> Iterator[tuple[int, int | None]]:
    """Bits and size of a group, None for one scale a row, of each scheme of weights in the config."""
    groups = quantization_of(config).get("config_groups")
    for scheme in groups.values() if isinstance(groups, Mapping) else ():
        weights = scheme.get("weights") if isinstance(scheme, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("num_bits") in WIDTHS:
            size = weights.get("group_size")
            yield weights["num_bits"], size if isinstance(size, int) and size > 0 else None


CODEC: Codec = PackQuantized()
