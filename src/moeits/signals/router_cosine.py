"""How alike the router chooses two experts: the cosine of their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moeits.errors import ShapeMismatch
from moeits.signals import ROUTER, Memory, PairSignal, pairwise
from moeits.signals.entries import pieces


@dataclass(frozen=True, kw_only=True)
class RouterCosine(PairSignal):
    """<a, b> / (|a| |b|) of two rows of the router, in [-1, 1]; a row of zeros is like no other: 0.

    Independent rows score 0 on average, so there is no floor.
    """

    name: ClassVar[str] = "router-cosine"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def passes(self, projections: Sequence[str]) -> Mapping[tuple[str, ...], float]:
        return {(ROUTER,): 1.0}

    def encode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        row = np.concatenate([*pieces([parts[ROUTER]])])
        return row / (np.linalg.norm(row) or 1.0)

    def compare(self, rows: Sequence[np.ndarray], columns: Sequence[np.ndarray]) -> np.ndarray:
        # Pair by pair: a matrix product rounds by its shape, and a score must not depend on --memory.
        return pairwise(_dot, rows, columns)

    def floor(self, encoded: Sequence[Any]) -> None:
        return None

    def memory(self, entries: int, itemsize: int) -> Memory:
        return Memory(encoded=8 * entries, encoding=24 * entries, comparing=0)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    if a.size != b.size:
        raise ShapeMismatch(f"Weights of {a.size} and {b.size} entries cannot be compared.")
    return float(np.clip(a @ b, -1.0, 1.0))
