"""Weights as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from moeits.checkpoint.reading import FLOATS
from moeits.experts.codecs import Codec, Decoded, Part


@dataclass(frozen=True)
class Plain:
    """One tensor of numbers."""

    name: ClassVar[str] = "plain"
    reads: ClassVar[tuple[str, ...]] = ("weight",)
    rows_apart: ClassVar[bool] = True
    outputs_first: ClassVar[bool] = False

    def holds(self, parts: Mapping[str, Part]) -> bool:
        return "weight" in parts and parts["weight"].dtype in FLOATS

    def size(self, parts: Mapping[str, Part], config: Mapping[str, Any]) -> Decoded:  # noqa: ARG002
        weight = parts["weight"]
        return Decoded(shape=weight.shape, itemsize=weight.nbytes // prod(weight.shape), held_bytes=weight.nbytes)

    def decode(self, parts: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:  # noqa: ARG002
        return parts["weight"]


CODEC: Codec = Plain()
