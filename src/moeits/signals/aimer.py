"""AIMER: how flat the distribution of an expert's weights is (arXiv 2603.18492)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

import numpy as np

from moeits.signals import ExpertSignal
from moeits.signals.entries import piece_bytes, pieces


@dataclass(frozen=True, kw_only=True)
class Aimer(ExpertSignal):
    """mean |w| / sqrt(mean w^2) over all entries of an expert's projections together, in (0, 1].

    1 where all entries are of one size (an expert of zeros too), 0.798 for Gaussian entries, 0.707 for Laplacian ones:
    the flattest go first.
    """

    name: ClassVar[str] = "aimer"
    goes_first: ClassVar[Literal["largest", "smallest"]] = "largest"

    def parts(self, projections: Sequence[str]) -> tuple[str, ...]:
        return tuple(projections)

    def measure(self, parts: Mapping[str, np.ndarray]) -> float:
        entries, total, squares = 0, 0.0, 0.0
        for piece in pieces(parts.values()):
            entries += piece.size
            total += float(np.abs(piece).sum())
            squares += float(np.square(piece).sum())
        return total / sqrt(entries * squares) if squares else 1.0

    def memory(self, entries: int, itemsize: int) -> int:
        return piece_bytes(entries)
