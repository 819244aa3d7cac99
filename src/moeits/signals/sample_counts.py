"""Kernels of the sampled pair loop: joint counts of a sample, and what a thinner sample would have shown.

Of counts c the sum of c ln c gives the entropy of the sample. The sum of g(c), what k ln k is on average when each
entry is kept with chance 1/2 or 1/4, gives the mean entropy of samples so much smaller, without drawing any.
"""

from functools import lru_cache
from math import ceil, log, log2

import numpy as np

from moeits.signals.cell_sums import thinned_of_many, thinned_terms
from moeits.signals.compiling import compiled
from moeits.signals.joint_counts import TABLE_BYTES, tables

_SMALL = 256

# Entries by whose spread a variance is told.
_ENOUGH = 1 << 17

THINNED = (1 / 2, 1 / 4)


def joint_sums(a: np.ndarray, b: np.ndarray, bins_a: int, bins_b: int) -> np.ndarray:
    """(3,): sums of c ln c and of g(c), thinned to a half and to a quarter, over the joint histogram of two samples.

    `a`, `b`: (n,) uint16 codes below `bins_a` and `bins_b`. Symmetric to the last bit, as terms are integers.
    """
    terms, scale = _terms(a.size)
    sums = np.zeros(3, np.int64)
    for table, wrapped in tables(a, b, bins_a, bins_b):
        if wrapped.size:
            cells, times = np.unique(wrapped, return_counts=True)
            sums += _large_terms(256 * times + table[cells], scale)
            table[cells] = 0
        sums += _add_small(table, terms)
    return sums / scale


def count_sums(counts: np.ndarray) -> np.ndarray:
    """The same sums over a histogram, to the last bit what `joint_sums` gives for a weight and a copy of it."""
    terms, scale = _terms(int(counts.sum()))
    many = counts[counts >= _SMALL]
    return (terms[counts[counts < _SMALL]].sum(0) + _large_terms(many, scale)) / scale


@lru_cache(maxsize=8)
def _terms(n: int) -> tuple[np.ndarray, float]:
    """(256, 3) int64: the terms of each small count, scaled so that the largest possible sum fits 62 bits."""
    scale = 2.0 ** (61 - ceil(log2(n * log(n) if n > 1 else 1.0)))
    counts = np.arange(_SMALL)
    thinned = (thinned_terms(_SMALL - 1, kept) for kept in THINNED)
    terms = np.stack([counts * np.log(np.maximum(counts, 1)), *thinned], 1)
    return np.rint(scale * terms).astype(np.int64), scale


def _large_terms(counts: np.ndarray, scale: float) -> np.ndarray:
    terms = np.stack([counts * np.log(counts), *(thinned_of_many(counts, kept) for kept in THINNED)], 1)
    return np.rint(scale * terms).astype(np.int64).sum(0)


@compiled
def _add_small(table, terms):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The sums over a uint8 table, which is left empty."""
    sums = np.zeros(3, np.int64)
    eights = table[: table.size // 8 * 8].view(np.uint64)
    for eight in eights:
        if eight & np.uint64(0xFEFEFEFEFEFEFEFE):  # 0 and 1 add nothing to either
            for byte in range(8):
                count = (eight >> np.uint64(8 * byte)) & np.uint64(0xFF)
                sums[0] += terms[count, 0]
                sums[1] += terms[count, 1]
                sums[2] += terms[count, 2]
    for count in table[8 * eights.size :]:
        sums[0] += terms[count, 0]
        sums[1] += terms[count, 1]
        sums[2] += terms[count, 2]
    table[:] = 0
    return sums


def pointwise_variance(
    a: np.ndarray, b: np.ndarray, logs: tuple[np.ndarray, np.ndarray], shares: tuple[float, float]
) -> float:
    """Variance over entries of ln(p_ab / (p_a p_b)) + share_a ln p_a + share_b ln p_b, probabilities as they are in the
    sample; of very large samples over every second entry, or third, and so on, which tells it to a hundredth.

    `logs`: ln p of each bin, of either weight.
    """
    every = max(1, a.size // _ENOUGH)
    if logs[0].size * logs[1].size <= TABLE_BYTES:
        ((table, wrapped),) = tables(a, b, logs[0].size, logs[1].size)
        if not wrapped.size:
            return float(_variance_at(a, b, table, *logs, *shares, every))
    return float(_variance_in_bands(a, b, *logs, *shares, every))


@compiled
def _variance_at(a, b, table, log_a, log_b, share_a, share_b, every):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """By a whole table of counts below 256."""
    joint = np.zeros(256)
    for count in range(1, 256):
        joint[count] = np.log(count / a.size)
    total, squares, width = 0.0, 0.0, np.uint32(log_b.size)
    for i in range(0, a.size, every):
        of_a, of_b = log_a[a[i]], log_b[b[i]]
        count = table[np.uint32(a[i]) * width + np.uint32(b[i])]
        value = joint[count] - (of_a + of_b) + (share_a * of_a + share_b * of_b)
        total += value
        squares += value * value
    looked_at = (a.size + every - 1) // every
    mean = total / looked_at
    return squares / looked_at - mean * mean


@compiled
def _variance_in_bands(a, b, log_a, log_b, share_a, share_b, every):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """By counts of any size, in bands of rows of limited memory."""
    bins_a, bins_b = log_a.size, log_b.size
    band = max(1, min(bins_a, (16 << 20) // bins_b))
    table = np.zeros(band * bins_b, np.uint32)
    total, squares = 0.0, 0.0
    for low in range(0, bins_a, band):
        for i in range(a.size):
            if low <= a[i] < low + band:
                table[(a[i] - low) * bins_b + b[i]] += 1
        for i in range(0, a.size, every):
            if low <= a[i] < low + band:
                of_a, of_b = log_a[a[i]], log_b[b[i]]
                joint = np.log(table[(a[i] - low) * bins_b + b[i]] / a.size)
                value = joint - (of_a + of_b) + (share_a * of_a + share_b * of_b)
                total += value
                squares += value * value
        table[:] = 0
    looked_at = (a.size + every - 1) // every
    mean = total / looked_at
    return squares / looked_at - mean * mean
