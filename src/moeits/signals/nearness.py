"""How near two experts are to each other: minus the squared distance of their router rows, or of their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.errors import ShapeMismatch
from moeits.signals import ROUTER, Memory, PairSignal, pairwise
from moeits.signals.entries import piece_bytes, pieces

_RUN = 4096


@dataclass(frozen=True, kw_only=True)
class Point:
    """A weight as a point in as many dimensions as it has entries."""

    at: np.ndarray
    """(N,) float32, in row-major order."""
    squared: float
    """Its squared distance from the origin."""


@dataclass(frozen=True, kw_only=True)
class Nearness(PairSignal):
    """-|a - b|^2, at most 0, of the entries in float32; summed in float64."""

    def encode(self, parts: Mapping[str, np.ndarray]) -> Point:
        (weight,) = parts.values()
        point, at, squared = np.empty(weight.size, np.float32), 0, 0.0
        for piece in pieces([weight]):
            point[at : at + piece.size] = piece
            squared += float(piece @ piece)
            at += piece.size
        return Point(at=point, squared=squared)

    def compare(self, rows: Sequence[Point], columns: Sequence[Point]) -> np.ndarray:
        return pairwise(_of_pair, rows, columns)

    def floor(self, encoded: Sequence[Point]) -> np.ndarray:
        """(E, E), diagonal 0: -(|a|^2 + |b|^2), what weights have that point nowhere together."""
        squared = np.array([each.squared for each in encoded])
        floor = -(squared[:, None] + squared)
        np.fill_diagonal(floor, 0.0)
        return floor

    def memory(self, entries: int, itemsize: int) -> Memory:
        return Memory(encoded=4 * entries, encoding=piece_bytes(entries), comparing=4 * _RUN + 8 * (entries // _RUN))


@dataclass(frozen=True, kw_only=True)
class RouterNearness(Nearness):
    """Of two rows of the router."""

    name: ClassVar[str] = "router-nearness"

    def passes(self, projections: Sequence[str]) -> Mapping[tuple[str, ...], float]:
        return {(ROUTER,): 1.0}


@dataclass(frozen=True, kw_only=True)
class WeightNearness(Nearness):
    """Of two experts' weights: the mean over projections."""

    name: ClassVar[str] = "weight-nearness"

    def passes(self, projections: Sequence[str]) -> Mapping[tuple[str, ...], float]:
        return {(name,): 1 / len(projections) for name in projections}


def _of_pair(a: Point, b: Point) -> float:
    if a.at.size != b.at.size:
        raise ShapeMismatch(f"Weights of {a.at.size} and {b.at.size} entries cannot be compared.")
    total = 0.0
    for start in range(0, a.at.size, _RUN):
        apart = a.at[start : start + _RUN] - b.at[start : start + _RUN]
        total += float(np.einsum("i,i->", apart, apart, dtype=np.float64))
    return -total
