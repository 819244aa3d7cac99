"""What the mutual information of two weights would be if their entries were jointly Gaussian: from one product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, log1p, sqrt
from typing import ClassVar

import numpy as np

from moeits.settings import same_as
from moeits.signals import Memory, PairSignal, pairwise
from moeits.signals.correlation import Centred, Correlation, correlation_of
from moeits.signals.nmi import NMI

_CORRELATION = Correlation()


@dataclass(frozen=True, kw_only=True)
class CentredInBins:
    """One weight as a direction, with the entropy of its histogram."""

    centred: Centred
    entropy: float
    """Plug-in, in nats, over the bins of NMI."""


@dataclass(frozen=True, kw_only=True)
class Gaussian(PairSignal):
    """-ln(1 - r^2) / 2 over sqrt(H(A) H(B)), r Pearson's correlation over the entries of a projection; the mean over
    projections.

    The numerator is the mutual information of a bivariate Gaussian, in nats, and at most the smaller of the entropies,
    which are those of NMI (paper, eq. 4); so the two are on one scale, and a copy has 1. Unlike `correlation`, which
    is a root of the same information, it makes little of many weak correlations beside a strong one: Algorithm 3
    compares sums, so that the two may remove other experts. A constant weight shares nothing: 0.
    """

    name: ClassVar[str] = "gaussian"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    bins: str | int = same_as(NMI, "bins")

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", NMI(bins=self.bins).bins)

    def passes(self, projections: Sequence[str]) -> Mapping[tuple[str, ...], float]:
        return _CORRELATION.passes(projections)

    def encode(self, parts: Mapping[str, np.ndarray]) -> CentredInBins:
        entropy = NMI(bins=self.bins).encode(parts).entropy
        return CentredInBins(centred=_CORRELATION.encode(parts), entropy=entropy)

    def compare(self, rows: Sequence[CentredInBins], columns: Sequence[CentredInBins]) -> np.ndarray:
        return pairwise(_of_pair, rows, columns)

    def floor(self, encoded: Sequence[CentredInBins]) -> np.ndarray:
        """(E, E), diagonal 0: of two random directions (psi(d / 2) - psi((d - 1) / 2)) / 2 on average, normalised.

        In d dimensions, which are entries less one, 1 - r^2 has a beta distribution of (d - 1) / 2 and 1 / 2.
        """
        floor = np.zeros((len(encoded), len(encoded)))
        for i, a in enumerate(encoded):
            expected = _mean_of_chance(a.centred.entries - 1)
            for j, b in enumerate(encoded[:i]):
                floor[i, j] = floor[j, i] = _normalised(expected, a.entropy, b.entropy)
        return floor

    def memory(self, entries: int, itemsize: int) -> Memory:
        own, binned = _CORRELATION.memory(entries, itemsize), NMI().memory(entries, itemsize)
        return Memory(
            encoded=own.encoded,
            encoding=max(own.encoding, binned.encoding + binned.encoded),
            comparing=own.comparing,
        )


def _of_pair(a: CentredInBins, b: CentredInBins) -> float:
    r = correlation_of(a.centred, b.centred)
    return _normalised(-log1p(-r * r) / 2 if r < 1 else inf, a.entropy, b.entropy)


def _normalised(information: float, entropy_a: float, entropy_b: float) -> float:
    if entropy_a == 0 or entropy_b == 0:
        return 0.0
    return min(min(information, entropy_a, entropy_b) / sqrt(entropy_a * entropy_b), 1.0)


def _mean_of_chance(dimensions: int) -> float:
    """E[-ln(1 - (u v)^2) / 2] of independent directions u, v; without end in one dimension."""
    if dimensions < 2:
        return inf if dimensions else 0.0
    return (_digamma(dimensions / 2) - _digamma((dimensions - 1) / 2)) / 2


def _digamma(x: float) -> float:
    """psi(x), x > 0, to 1e-13: upwards by psi(x) = psi(x + 1) - 1 / x to where the asymptotic series holds."""
    below = 0.0
    while x < 12:
        below, x = below + 1 / x, x + 1
    square = 1 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    return log(x) - 1 / (2 * x) - series - below
