"""The computation as one would write it from the paper: two histograms and a joint one for each pair, by NumPy."""

from math import sqrt

import numpy as np


def nmi(a: np.ndarray, b: np.ndarray) -> float:
    """NMI of two weights with NumPy's automatic bins; the oracle of tests and benchmarks."""
    a, b = a.astype(np.float32).ravel(), b.astype(np.float32).ravel()
    counts_a, edges_a = np.histogram(a, bins="auto")
    counts_b, edges_b = np.histogram(b, bins="auto")
    joint, _, _ = np.histogram2d(a, b, bins=[edges_a, edges_b])
    entropy_a, entropy_b = _entropy(counts_a), _entropy(counts_b)
    if entropy_a == 0 or entropy_b == 0:
        return 0.0
    return (entropy_a + entropy_b - _entropy(joint)) / sqrt(entropy_a * entropy_b)


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
