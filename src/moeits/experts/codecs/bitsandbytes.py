"""Weights that bitsandbytes keeps in four bits (NF4, FP4), their scales as numbers or quantized once more."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import msgspec
import numpy as np

from moeits.errors import UnscorableWeight
from moeits.experts.codecs import Codec, Decoded, Part, dtype_of
from moeits.experts.codecs.scales import finite_or_not

_STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
# Entries that are decoded at a time, and what each takes: indices, values, scales.
_ENTRIES, _ENTRY_BYTES = 2**18, 18


class _State(msgspec.Struct):
    """What bitsandbytes writes as JSON beside a weight."""

    blocksize: int
    shape: tuple[int, int]
    nested_blocksize: int = 0
    nested_offset: float = 0.0


@dataclass(frozen=True)
class Bitsandbytes:
    """value = quant_map[code] * absmax of its block, in float32, as bitsandbytes' dequantize_4bit.

    `weight` has two codes a byte, the high half first, flat; `absmax` (B,) is float32, or codes of `nested_quant_map`
    to be multiplied by `nested_absmax` of their block. The shape is in the JSON of `quant_state`, so headers do not
    tell it.
    """

    name: ClassVar[str] = "bitsandbytes"
    reads: ClassVar[tuple[str, ...]] = (
        "weight", "absmax", "quant_map", "nested_absmax", "nested_quant_map", *_STATES,
    )  # fmt: skip
    rows_apart: ClassVar[bool] = False
    outputs_first: ClassVar[bool] = True

    def holds(self, parts: Mapping[str, Part]) -> bool:
        return (
            {"weight", "absmax", "quant_map"} <= parts.keys()
            and any(state in parts for state in _STATES)
            and (parts["absmax"].dtype == "F32" or {"nested_absmax", "nested_quant_map"} <= parts.keys())
        )

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:
        weight, absmax = parts["weight"], parts["absmax"]
        entries, blocks = 2 * weight.nbytes, prod(absmax.shape)
        if not blocks or parts["quant_map"].shape != (16,) or entries % blocks:
            raise UnscorableWeight(
                f"{blocks} scales do not fit {entries} numbers of four bits; download the checkpoint again"
            )
        itemsize = dtype_of(config).itemsize
        held = weight.nbytes + absmax.nbytes + 4 * blocks + entries * itemsize + min(entries, _ENTRIES) * _ENTRY_BYTES
        return Decoded(shape=(entries, 1), itemsize=itemsize, held_bytes=held)

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        state = _state_of(parts)
        octets, scales = parts["weight"].reshape(-1).view(np.uint8), _scales(parts, state)
        result = np.empty(2 * octets.size, dtype_of(config))
        for start in range(0, result.size, _ENTRIES):
            some = octets[start // 2 : (start + _ENTRIES) // 2]
            codes = np.stack([some >> 4, some & 15], axis=1).reshape(-1)
            block = np.arange(start, start + codes.size) // state.blocksize
            with finite_or_not():
                result[start : start + codes.size] = parts["quant_map"][codes] * scales[block]
        return result.reshape(state.shape)


def _state_of(parts: Mapping[str, np.ndarray]) -> _State:
    """What is written about the weight. Raises UnscorableWeight if it does not fit it."""
    written = next(parts[name] for name in _STATES if name in parts)
    try:
        state = msgspec.json.decode(written.tobytes(), type=_State)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnscorableWeight("its quant_state cannot be read; download the checkpoint again") from None
    entries, blocks = 2 * parts["weight"].nbytes, parts["absmax"].size
    if min(state.shape) < 1 or prod(state.shape) != entries or entries != state.blocksize * blocks:
        raise UnscorableWeight(
            f"its quant_state says shape {list(state.shape)} in blocks of {state.blocksize}, but there are {entries} "
            f"numbers and {blocks} scales; download the checkpoint again"
        )
    return state


def _scales(parts: Mapping[str, np.ndarray], state: _State) -> np.ndarray:
    """(B,) float32, the scale of each block."""
    if "nested_absmax" not in parts:
        return parts["absmax"]
    codes, nested = parts["absmax"].reshape(-1).view(np.uint8), parts["nested_absmax"]
    if parts["nested_quant_map"].size != 256 or not 0 <= codes.size <= state.nested_blocksize * nested.size:
        raise UnscorableWeight(
            f"{nested.size} scales of scales in blocks of {state.nested_blocksize} do not fit {codes.size} scales"
        )
    with finite_or_not():
        scales = parts["nested_quant_map"][codes] * nested[np.arange(codes.size) // state.nested_blocksize]
        return scales + np.float32(state.nested_offset)


CODEC: Codec = Bitsandbytes()
