"""Sums over all cells of the joint histogram of two independent weights, for very many pairs.

What a cell is expected to contribute is a smooth function h of the logarithm of its mean count, ln n_a + ln n_b - ln n.
So h(x + y) is interpolated at Chebyshev points in x and in y, and the sum over the cells of a pair becomes a
bilinear form of two short vectors, one for each weight: a microsecond a pair instead of bins^2.
"""

from collections.abc import Callable
from functools import lru_cache
from math import log

import numpy as np

from moeits.signals.compiling import compiled

# Points on the range of ln n; less than 1e-5 of a sum is lost (tests/test_sample.py).
POINTS = 48

_LEAST, _LARGE, _STEP = -40.0, log(300.0), 0.02
_MEANS = np.append(np.arange(_LEAST, _LARGE, _STEP), _LARGE)
_PARTS = 64
_BINS_AT_A_TIME = 2048


class Cells:
    """Functions of a Poisson count c by the logarithm of its mean m; f(c) = c ln c, g(c) = f of c thinned to a half."""

    @staticmethod
    def excess(z: np.ndarray) -> np.ndarray:
        """E f(c) - f(m)."""
        return _looked_up("excess", z)

    @staticmethod
    def curvature(z: np.ndarray) -> np.ndarray:
        """m^2 E[f(c + 2) - 2 f(c + 1) + f(c)] / 2: what a change of the second factorial moment adds to E f."""
        return _looked_up("curvature", z)

    @staticmethod
    def spread(which: str) -> Callable[[np.ndarray], np.ndarray]:
        """Covariance of f and f ("ff"), f and g ("fg"), g and g ("gg") beyond what follows from c: given marginals."""
        return lambda z: _looked_up(which, z)

    @staticmethod
    def shared(kept: float) -> Callable[[np.ndarray], np.ndarray]:
        """Covariance, beyond c, of f(c) and f of the same count thinned to this share."""
        at, values = _shared_table(kept)

        def function(z: np.ndarray) -> np.ndarray:
            return np.where(z < _LARGE, np.exp(np.interp(z, at, values)), kept / 2)

        return function

    @staticmethod
    def squares(z: np.ndarray) -> np.ndarray:
        """E c ln^2(c / m)."""
        return _looked_up("squares", z)


def _looked_up(name: str, z: np.ndarray) -> np.ndarray:
    large = _LARGE_MEANS[name](np.exp(np.maximum(z, _LARGE)))
    return np.where(z < _LARGE, np.exp(np.interp(z, _MEANS, _tables()[name])), large)


# Expansions of the same about a large mean.
_LARGE_MEANS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "excess": lambda m: 0.5 + 1 / (12 * m),
    "curvature": lambda m: m / 2,
    "ff": lambda m: 1 / 2 + 1 / (6 * m),
    "fg": lambda m: 1 / 4 + 1 / (12 * m),
    "gg": lambda m: 1 / 8 + 1 / (24 * m),
    "squares": lambda m: 1 - 1 / (4 * m),
}


@lru_cache(maxsize=1)
def _tables() -> dict[str, np.ndarray]:
    """Logarithms of the functions of `Cells` at `_MEANS`, summed term by term, once in a process."""
    parts = [_by_summation(np.exp(at)) for at in np.array_split(_MEANS, _PARTS)]
    return {name: np.log(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def thinned_terms(most: int, kept: float = 0.5) -> np.ndarray:
    """(most + 1,): g(c), the expectation of k ln k for a Binomial(c, kept) count k."""
    counts = np.arange(most + 1)
    logs = np.log(np.maximum(counts, 1))
    log_factorials = np.cumsum(logs)
    k, c = counts[None, :], counts[:, None]
    lost = np.maximum(c - k, 0)
    log_chances = log_factorials[c] - log_factorials[k] - log_factorials[lost] + k * log(kept) + lost * log(1 - kept)
    return np.where(k <= c, np.exp(log_chances), 0.0) @ (counts * logs)


def thinned_of_many(counts: np.ndarray, kept: float = 0.5) -> np.ndarray:
    """g(c) of counts of hundreds, by its expansion about the mean."""
    mean, left = kept * counts, 1 - kept
    fourth = mean * left * (1 + 3 * (mean * left - 2 * kept * left))
    third = mean * left * (1 - 2 * kept)
    return mean * np.log(mean) + left / 2 - third / (6 * mean**2) + fourth / (12 * mean**3)


class _Counts:
    """Poisson counts of some ascending means, to ten standard deviations past the largest; matrices (means, counts)."""

    def __init__(self, means: np.ndarray) -> None:
        most = int(means[-1] + 10 * means[-1] ** 0.5 + 20)
        self.means, self.counts, self._log_means = means, np.arange(most + 1), np.log(means)[:, None]
        self.logs = np.log(np.maximum(self.counts, 1))
        self.from_mean = self.counts - means[:, None]
        self.chances = np.exp(self._log_means * self.counts - means[:, None] - np.cumsum(self.logs))

    def thinned(self, kept: float) -> np.ndarray:
        """f of counts thinned to this share, less its tangent at a large mean: its spread beyond c is the same, and
        comes without differences of large numbers."""
        terms = self.counts * self.logs if kept == 1 else thinned_terms(self.counts[-1], kept)
        slope = 1 + self._log_means + log(kept)
        tangent = kept * (self.means[:, None] * (slope - 1) + slope * self.from_mean)
        return terms - (self.means[:, None] >= 1) * tangent

    def beyond(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(means,): covariance of two functions of c, less what both have in common with c."""

        def of(product: np.ndarray) -> np.ndarray:
            return (self.chances * product).sum(1)

        both = of(one * other) - of(one) * of(other)
        return both - of(one * self.from_mean) * of(other * self.from_mean) / self.means


def _by_summation(means: np.ndarray) -> dict[str, np.ndarray]:
    """Each function at ascending means."""
    cells = _Counts(means)
    counts, chances = cells.counts, cells.chances
    whole, half = cells.thinned(1), cells.thinned(1 / 2)
    next_counts = np.arange(counts.size + 2)
    values = next_counts * np.log(np.maximum(next_counts, 1))
    return {
        "excess": chances @ values[:-2] - means * np.log(means),
        "curvature": means**2 * (chances @ np.diff(values, 2)) / 2,
        "ff": cells.beyond(whole, whole),
        "fg": cells.beyond(whole, half),
        "gg": cells.beyond(half, half),
        "squares": (chances * counts * (cells.logs - np.log(means)[:, None]) ** 2).sum(1),
    }


@lru_cache(maxsize=8)
def _shared_table(kept: float) -> tuple[np.ndarray, np.ndarray]:
    """Means on a logarithmic scale, and the logarithms of `Cells.shared`."""
    parts = [_Counts(np.exp(at)) for at in np.array_split(_MEANS, _PARTS)]
    return _MEANS, np.log(np.concatenate([part.beyond(part.thinned(1), part.thinned(kept)) for part in parts]))


class Grid:
    """Chebyshev points on [0, ln n], and sums over bins as values at them."""

    def __init__(self, most: int) -> None:
        order = np.arange(POINTS)
        self.points = (1 - np.cos(np.pi * order / (POINTS - 1))) / 2 * max(log(most), 1.0)
        self._weights = np.where(order % 2, -1.0, 1.0)
        self._weights[[0, -1]] /= 2

    def spread(self, counts: np.ndarray, amounts: np.ndarray) -> np.ndarray:
        """(POINTS,): v such that sum of amount h(ln count) over all bins is v . h(points), for any smooth h."""
        result = np.zeros(POINTS)
        for start in range(0, counts.size, _BINS_AT_A_TIME):
            some = slice(start, start + _BINS_AT_A_TIME)
            at = np.log(counts[some])[:, None] - self.points
            hit = np.abs(at) < 1e-12
            terms = self._weights / np.where(hit, 1.0, at)
            shares = np.where(hit.any(1, keepdims=True), hit, terms / terms.sum(1, keepdims=True))
            result += amounts[some] @ shares
        return result

    def of_cells(self, function: Callable[[np.ndarray], np.ndarray], shift: float) -> np.ndarray:
        """(POINTS, POINTS): h(x + y + shift)."""
        return function(np.add.outer(self.points, self.points) + shift)


@compiled
def bilinear(bases, forms, other_bases, other_forms, basis_of):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(sums,): the sum of each form over the cells of two weights, the same to the last bit in either order."""
    values = np.zeros(basis_of.size)
    for form in range(basis_of.size):
        one, other = 0.0, 0.0
        for point in range(forms.shape[1]):
            one += bases[basis_of[form], point] * other_forms[form, point]
            other += other_bases[basis_of[form], point] * forms[form, point]
        values[form] = (one + other) / 2
    return values
