"""How alike two weights are entry by entry: the absolute correlation of entries at the same place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, lgamma, pi, sqrt
from typing import ClassVar

import numpy as np

from moeits.errors import ShapeMismatch
from moeits.signals import Memory, PairSignal, pairwise
from moeits.signals.entries import piece_bytes, pieces

_RUN = 4096


@dataclass(frozen=True, kw_only=True)
class Centred:
    """One weight as a vector of mean 0 and length 1."""

    entries: int
    runs: np.ndarray
    """(R, 4096) float32: its entries in row-major order, and zeros to the end of the last run."""


@dataclass(frozen=True, kw_only=True)
class Correlation(PairSignal):
    """|r| in [0, 1], r Pearson's correlation over the entries of a projection; the mean over projections.

    It is what the mutual information would be of weights that are jointly Gaussian, I = -ln(1 - r^2) / 2, brought to
    [0, 1] by Linfoot's coefficient sqrt(1 - exp(-2 I)). A constant weight is like no other: 0.
    """

    name: ClassVar[str] = "correlation"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def passes(self, projections: Sequence[str]) -> Mapping[tuple[str, ...], float]:
        return {(name,): 1 / len(projections) for name in projections}

    def encode(self, parts: Mapping[str, np.ndarray]) -> Centred:
        (weight,) = parts.values()
        runs = np.zeros((-(-weight.size // _RUN), _RUN), np.float32)
        flat, at = runs.reshape(-1), 0
        for piece in pieces([weight]):
            flat[at : at + piece.size] = piece
            at += piece.size
        own = flat[: weight.size]
        own /= max(own.max(), -own.min()) or 1  # so that no square is too large, or too small
        own -= np.float32(own.mean(dtype=np.float64))
        own /= np.float32(sqrt(_dot(runs, runs))) or 1
        return Centred(entries=weight.size, runs=runs)

    def compare(self, rows: Sequence[Centred], columns: Sequence[Centred]) -> np.ndarray:
        return pairwise(correlation_of, rows, columns)

    def floor(self, encoded: Sequence[Centred]) -> np.ndarray:
        """(E, E), diagonal 0: the mean of |u v| of two random directions in as many dimensions as entries less one."""
        varies = np.array([bool(each.runs.any()) for each in encoded])
        expected = np.array([_mean_of_chance(each.entries - 1) for each in encoded])
        floor = np.where(np.outer(varies, varies), expected[:, None], 0.0)
        np.fill_diagonal(floor, 0.0)
        return floor

    def memory(self, entries: int, itemsize: int) -> Memory:
        return Memory(encoded=4 * (entries + _RUN), encoding=piece_bytes(entries), comparing=8 * (entries // _RUN + 1))


def correlation_of(a: Centred, b: Centred) -> float:
    """|r| of two weights. Raises ShapeMismatch."""
    if a.entries != b.entries:
        raise ShapeMismatch(f"Weights of {a.entries} and {b.entries} entries cannot be compared.")
    # Beyond eight decimals it is the rounding of single precision.
    return min(round(abs(_dot(a.runs, b.runs)), 8), 1.0)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """<a, b>, by runs in single precision and over them in double: the same whatever the threads of the BLAS are."""
    return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64))


def _mean_of_chance(dimensions: int) -> float:
    """E|u v| of independent directions u, v: gamma(d / 2) / (sqrt(pi) gamma((d + 1) / 2))."""
    if dimensions < 1:
        return 0.0
    return exp(lgamma(dimensions / 2) - lgamma((dimensions + 1) / 2)) / sqrt(pi)
