"""How large an expert's weights are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

import numpy as np

from moeits.signals import ExpertSignal
from moeits.signals.entries import piece_bytes, pieces


@dataclass(frozen=True, kw_only=True)
class WeightNorm(ExpertSignal):
    """sqrt(sum w^2) over all entries of an expert's projections together; the smallest go first."""

    name: ClassVar[str] = "weight-norm"
    goes_first: ClassVar[Literal["largest", "smallest"]] = "smallest"

    def parts(self, projections: Sequence[str]) -> tuple[str, ...]:
        return tuple(projections)

    def measure(self, parts: Mapping[str, np.ndarray]) -> float:
        return sqrt(sum(float(np.square(piece).sum()) for piece in pieces(parts.values())))

    def memory(self, entries: int, itemsize: int) -> int:
        return piece_bytes(entries)
