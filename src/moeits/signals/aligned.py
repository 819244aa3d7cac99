"""How alike two experts are when their neurons are put in the order in which they match best."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log, sqrt
from typing import ClassVar

import numpy as np

from moeits.errors import ShapeMismatch, UnscorableWeight
from moeits.extras import need
from moeits.signals import Memory, PairSignal, pairwise
from moeits.signals.entries import pieces

_OF_CHANCE = 128  # neurons of each expert from which the cosines of chance are taken
_MOST_SIMULATED = 1024


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """An expert as its neurons: for each its row of gate, its row of up and its column of down, of equal lengths."""

    entries: int
    """Of one projection."""
    rows: np.ndarray
    """(I, projections * H) float32, of length 1: the product of two is the mean of the cosines of their parts."""
    key: bytes
    """Of two experts the one with the smaller key comes first, so that a pair has one score whoever is asked first."""


@dataclass(frozen=True, kw_only=True)
class Aligned(PairSignal):
    """The mean cosine of matched neurons, in [-1, 1]: the matching is the best one to one (linear assignment).

    A neuron is its row of gate, its row of up and its column of down; its cosine with another's is the mean of the
    three. An expert that is another with its neurons in another order, or scaled, scores 1 with it. A layer takes
    E^2 I^2 H multiplications and E^2 / 2 assignments of I neurons: hours for a large model. Needs scipy (extra
    `aligned`).
    """

    name: ClassVar[str] = "aligned"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def passes(self, projections: Sequence[str]) -> Mapping[tuple[str, ...], float]:
        return {tuple(projections): 1.0}

    def encode(self, parts: Mapping[str, np.ndarray]) -> Neurons:
        for _ in pieces(parts.values()):
            pass  # refuses what cannot be computed with
        lying = [part.T if name == "down" else part for name, part in parts.items()]
        if len({part.shape for part in lying}) > 1:
            raise UnscorableWeight("its projections are not of one width, so that their neurons cannot be told apart")
        rows = unit_neurons(lying)
        key = hashlib.blake2b(rows.data, digest_size=16).digest()
        return Neurons(entries=lying[0].size, rows=rows, key=key)

    def compare(self, rows: Sequence[Neurons], columns: Sequence[Neurons]) -> np.ndarray:
        return pairwise(_of_pair, rows, columns)

    def floor(self, encoded: Sequence[Neurons]) -> np.ndarray:
        """(E, E), diagonal 0: what the best matching finds among cosines of chance, which scatter as some of these do.

        Their mean and spread are those of the cosines of 128 neurons of each expert, by median and median deviation, so
        that a few copies among them do not matter; the best matching of Gaussian ones is simulated once.
        """
        floor = np.zeros((len(encoded), len(encoded)))
        for i, a in enumerate(encoded):
            for j, b in enumerate(encoded[:i]):
                floor[i, j] = floor[j, i] = _of_chance(*_ordered(a, b))
        return floor

    def memory(self, entries: int, itemsize: int) -> Memory:
        # A matrix of I x I, single once and double three times, where I is up to four times the hidden size.
        return Memory(encoded=4 * entries, encoding=12 * entries, comparing=28 * 2 * entries)


def unit_neurons(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(I, sum of H) float32, of length 1: of parts of neurons, (I, H) each, what products of are mean cosines."""
    count, width = parts[0].shape
    rows = np.empty((count, width * len(parts)), np.float32)
    for number, part in enumerate(parts):
        own = rows[:, number * width : (number + 1) * width]
        own[:] = part
        lengths = np.sqrt(len(parts) * np.einsum("ij,ij->i", own, own, dtype=np.float64))
        own /= np.where(lengths > 0, lengths, 1)[:, None]
    return rows


def matching(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows of `a` and of `b`, (I, D): which of `b` goes with each of `a`, (I,), and their products, (I,).

    The sum of the products is the largest that there is. Raises MissingExtra without scipy.
    """
    assignment = need("scipy.optimize", extra="aligned").linear_sum_assignment
    products = a @ b.T
    _, partner = assignment(products, maximize=True)
    return partner, products[np.arange(len(a)), partner]


def _ordered(a: Neurons, b: Neurons) -> tuple[Neurons, Neurons]:
    if a.rows.shape != b.rows.shape:
        raise ShapeMismatch(f"Weights of {a.entries} and {b.entries} entries cannot be compared.")
    return (a, b) if a.key <= b.key else (b, a)


def _of_pair(a: Neurons, b: Neurons) -> float:
    first, second = _ordered(a, b)
    _, products = matching(first.rows, second.rows)
    return float(np.clip(round(float(products.mean(dtype=np.float64)), 6), -1.0, 1.0))


def _of_chance(a: Neurons, b: Neurons) -> float:
    some = a.rows[:_OF_CHANCE] @ b.rows[-_OF_CHANCE:].T
    middle = float(np.median(some))
    spread = 1.4826 * float(np.median(np.abs(some - middle)))
    return round(min(middle + spread * _best_of_gaussian(len(a.rows)), 1.0), 6)


@lru_cache
def _best_of_gaussian(count: int) -> float:
    """The mean product of the best matching of `count` with `count`, where all products are standard Gaussian.

    Beyond 1,024 it grows as sqrt(2 ln count) does.
    """
    size = min(count, _MOST_SIMULATED)
    rng = np.random.default_rng(0)
    times = max(1, 4096 // size**2)
    simulated = [matching(rng.standard_normal((size, size)), np.eye(size))[1].mean() for _ in range(times)]
    return float(np.mean(simulated)) + sqrt(2 * log(count)) - sqrt(2 * log(size))
