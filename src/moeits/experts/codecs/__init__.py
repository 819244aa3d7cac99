"""How the numbers of a weight lie in a checkpoint: as they are, or packed, with scales beside them.

Only what computes with weights asks a codec; surgery moves the bytes of every part and decodes nothing. To add one:
write `codecs/<name>.py` with what fulfils `Codec`, and add its line to `CODECS` below (docs/extending.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Protocol

import ml_dtypes
import numpy as np

_DTYPES: Mapping[Any, np.dtype] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one tensor has of one expert."""

    dtype: str
    """The safetensors name: BF16, F8_E4M3, U8, ..."""
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What decoding gives, and takes."""

    shape: tuple[int, ...]
    """(outputs, inputs); (entries, 1) where headers do not tell them apart."""
    itemsize: int
    held_bytes: int
    """All that is in memory at a time: the parts, the result, and what it is made with."""

    @property
    def entries(self) -> int:
        """Numbers of the weight."""
        return prod(self.shape)


class Codec(Protocol):
    """One way to keep a weight. Its parts are called by what their names add to the weight's: `weight` is the tensor
    of the weight's own name, `scale_inv` is `gate_proj.weight_scale_inv`, `blocks` is `experts.gate_up_proj_blocks`.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    """The parts that it decodes, where they are there; all others are left alone."""
    rows_apart: ClassVar[bool]
    """Whether rows of the weight are the same rows of its one part, and can be read without the others."""
    outputs_first: ClassVar[bool]
    """Whether it is (outputs, inputs) by itself, also where the family keeps fused weights the other way round."""

    def holds(self, parts: Mapping[str, Part]) -> bool:
        """Whether a weight with these parts is kept in this way."""
        ...

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:
        """What decoding will give. Raises UnscorableWeight if the shapes of the parts do not fit each other."""
        ...

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        """The numbers of the weight, in a dtype that can be computed with."""
        ...


def dtype_of(config: Mapping[str, Any]) -> np.dtype:
    """The dtype in which stock transformers computes with a packed model: that of config.json, else bfloat16."""
    named = _first(config, ("dtype", "torch_dtype"), str) or "bfloat16"
    return _DTYPES.get(named, _DTYPES["bfloat16"])


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a quantizer wrote into config.json: of a model of several parts, there or in the part's config."""
    return _first(config, ("quantization_config", "compression_config"), dict) or {}


def _first(config: Mapping[str, Any], keys: tuple[str, ...], kind: type, depth: int = 4) -> Any:
    """The first value of this kind under one of the keys: of a config, else of a config in it."""
    of_config = (config[key] for key in keys if isinstance(config.get(key), kind))
    parts = (config[key] for key in config if depth and key.endswith("_config") and key not in keys)
    of_parts = (_first(part, keys, kind, depth - 1) for part in parts if isinstance(part, dict))
    return next((value for value in (*of_config, *of_parts) if value), None)


from moeits.experts.codecs import awq, bitsandbytes, fp8, gptq, int4, mxfp4, nvfp4, plain  # noqa: E402

# The first that holds a weight decodes it.
CODECS: tuple[Codec, ...] = (
    fp8.CODEC,
    mxfp4.CODEC,
    nvfp4.CODEC,
    int4.CODEC,
    gptq.CODEC,
    awq.CODEC,
    bitsandbytes.CODEC,
    plain.CODEC,
)


def codec_of(parts: Mapping[str, Part]) -> Codec | None:
    """The codec of a weight with these parts; None if it is packed in another way."""
    return next((codec for codec in CODECS if codec.holds(parts)), None)
