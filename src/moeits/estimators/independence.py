"""What the plug-in joint entropy of two weights would be if they were independent (method.md, section 6).

Under independence a cell of the joint histogram is Poisson with mean m = N p_a q_b, so its expected contribution is
g(m) = E[c ln c], a smooth function of ln m. Bin counts are therefore put on a grid of ln n, each shared between its two
neighbours, and all pairs of E weights follow from one matrix product.
"""

from collections.abc import Sequence
from math import log

import numpy as np

_GRID_STEP = 0.02


def expected_joint_entropies(counts: Sequence[np.ndarray]) -> np.ndarray:
    """(E, E), nats: expected plug-in entropy of the joint histogram of each two of E independent weights.

    `counts`: for each weight the entries per occupied bin, (B,) int64; all with the same total N.
    """
    n = int(counts[0].sum())
    size = int(log(n) / _GRID_STEP) + 2
    on_grid = np.stack([_on_log_grid(weight, size) for weight in counts])
    # Cell (k, l) of the grid has mean count exp(step (k + l)) / N, so the kernel depends on k + l only.
    means = np.exp(_GRID_STEP * np.arange(2 * size - 1)) / n
    kernel = expected_count_log_count(means)
    hankel = kernel[np.add.outer(np.arange(size), np.arange(size))]
    return log(n) - on_grid @ hankel @ on_grid.T / n


def expected_count_log_count(means: np.ndarray) -> np.ndarray:
    """E[c ln c] of Poisson counts with these means, (M,) float64."""
    counts = np.arange(2, 600)
    log_factorials = np.cumsum(np.log(counts))
    terms = counts * np.log(counts)
    return np.array(
        [
            (np.exp(counts * log(mean) - mean - log_factorials) * terms).sum() if mean < 300 else _asymptote(mean)
            for mean in means
        ]
    )


def _on_log_grid(counts: np.ndarray, size: int) -> np.ndarray:
    """(size,): how many bins have a count of exp(step k), each shared linearly between its two grid points."""
    at = np.log(counts) / _GRID_STEP
    lower = at.astype(np.int64)
    upper_share = at - lower
    return np.bincount(lower, 1 - upper_share, size) + np.bincount(lower + 1, upper_share, size)


def _asymptote(mean: float) -> float:
    """The Taylor expansion of c ln c about the mean, by the central moments of a Poisson variable."""
    return mean * log(mean) + 0.5 + 1 / (12 * mean)
