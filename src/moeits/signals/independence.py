"""What the plug-in mutual information of two weights would be if they were independent (docs/method.md, section 5).

Under independence a cell of the joint histogram counts n_a n_b / N entries on average, and its expected share of the
information is E[c ln c] minus the same of that mean: a smooth function of ln n_a + ln n_b. Bin counts are therefore put
on a grid of ln n, each shared between its two neighbours, and all pairs of E weights follow from matrix products.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import log

import numpy as np

_GRID_STEP = 0.02

# Beyond this mean the asymptote is closer than the sum's rounding; the sums reach ten standard deviations past it.
_LARGE_MEAN = 300.0
_MOST_COUNT = 600


def expected_information(counts: Sequence[np.ndarray]) -> np.ndarray:
    """(E, E), nats: expected plug-in mutual information of each two of E independent weights.

    `counts`: for each weight the entries per occupied bin, (B,) int64; all with the same total N. Given the two
    marginals a cell is hypergeometric; it is taken as a Poisson count, corrected for its second factorial moment, which
    is m^2 (1 - 1 / n_a) (1 - 1 / n_b) N / (N - 1) instead of m^2.
    """
    n = int(counts[0].sum())
    size = int(log(n) / _GRID_STEP) + 2
    bins = np.stack([_on_log_grid(weight, np.ones(weight.size), size) for weight in counts])
    narrow = np.stack([_on_log_grid(weight, 1 - 1 / weight, size) for weight in counts])
    excess, curvature = _kernels(n, size)
    correction = narrow @ curvature @ narrow.T * (n / max(n - 1, 1)) - bins @ curvature @ bins.T
    return (bins @ excess @ bins.T + correction) / n


@lru_cache(maxsize=4)
def _kernels(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`_poisson_excess` on the grid, (size, size) each; the same for all weights of N entries, so kept for the next."""
    # Cell (k, l) of the grid has mean count exp(step (k + l)) / N, so the kernels depend on k + l only.
    excess, curvature = _poisson_excess(np.exp(_GRID_STEP * np.arange(2 * size - 1)) / n)
    cell = np.add.outer(np.arange(size), np.arange(size))
    return excess[cell], curvature[cell]


def _poisson_excess(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For Poisson counts c of these means m: E[f(c)] - f(m) and m^2 E[f(c + 2) - 2 f(c + 1) + f(c)] / 2, f = c ln c."""
    small = means[means < _LARGE_MEAN]
    counts = np.arange(_MOST_COUNT + 2)
    values = counts * np.log(np.maximum(counts, 1))
    log_factorials = np.cumsum(np.log(np.maximum(counts, 1)))
    chances = np.exp(np.outer(np.log(small), counts[:-2]) - small[:, None] - log_factorials[:-2])
    # The large-mean branch is the Taylor expansion of c ln c about the mean, by the central moments of a Poisson count.
    excess, curvature = 0.5 + 1 / (12 * means), means / 2
    excess[: small.size] = chances @ values[:-2] - small * np.log(small)
    curvature[: small.size] = small**2 * (chances @ np.diff(values, 2)) / 2
    return excess, curvature


def _on_log_grid(counts: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """(size,): the weights of all bins, each shared between the two grid points exp(step k) about its count."""
    at = np.log(counts) / _GRID_STEP
    lower = at.astype(np.int64)
    upper_share = at - lower
    below = np.bincount(lower, weights * (1 - upper_share), size)
    return below + np.bincount(lower + 1, weights * upper_share, size)
