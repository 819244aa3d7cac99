"""Signals that see what the published score cannot: correlation entry by entry, and neurons put in order first."""

import sys
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr

from experiments.copies import FIVE, KINDS, TWO, found, plant
from moeits.choosing.criteria import criterion_named
from moeits.errors import MissingExtra, UnscorableWeight
from moeits.signals.aligned import Aligned
from moeits.signals.correlation import Correlation
from moeits.stages.score import score

Weights = Mapping[str, np.ndarray]


def expert(rng: np.random.Generator, width: int = 6, hidden: int = 10) -> dict[str, np.ndarray]:
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def aligned(a: Weights, b: Weights) -> float:
    return float(Aligned().compare([Aligned().encode(a)], [Aligned().encode(b)])[0, 0])


def cosines(a: Weights, b: Weights) -> np.ndarray:
    """(I, I): of each neuron of `a` with each of `b`, the mean over gate, up and down."""

    def each(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))

    rows = [(a[name], b[name]) for name in ("gate", "up")] + [(a["down"].T, b["down"].T)]
    return np.mean([each(x.astype(np.float64), y.astype(np.float64)) for x, y in rows], axis=0)


def test_a_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_t(4, (70, 130)).astype(np.float32) + 3
    b = (0.02 * a + rng.standard_normal(a.shape)).astype(np.float32)
    signal = Correlation()
    own = signal.compare([signal.encode({"up": a})], [signal.encode({"up": b}), signal.encode({"up": -2 * a})])
    expected = abs(float(pearsonr(a.astype(np.float64).ravel(), b.astype(np.float64).ravel()).statistic))
    assert own[0] == pytest.approx([expected, 1.0], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_numbers_whose_squares_are_no_numbers_correlate_all_the_same(scale: float) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 8, 9)).astype(np.float32)
    signal = Correlation()
    encoded = signal.encode({"up": b})
    far, plain = (signal.compare([signal.encode({"up": a * np.float32(by)})], [encoded])[0, 0] for by in (scale, 1))
    assert far == pytest.approx(plain, rel=1e-5)


def test_the_best_matching_is_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(1)
    a, b = expert(rng), expert(rng)
    products = cosines(a, b)
    best = max(np.mean([products[i, j] for i, j in enumerate(order)]) for order in permutations(range(6)))
    assert aligned(a, b) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("kind", ["exact", "neurons in another order", "neurons scaled, each by its own"])
def test_an_expert_that_does_the_same_is_found_to_be_the_same(kind: str) -> None:
    rng = np.random.default_rng(2)
    a = expert(rng, 24, 32)
    assert aligned(a, KINDS[kind](a, rng)) == 1.0
    assert aligned(a, expert(rng, 24, 32)) < 0.5


def test_experts_without_a_gate_are_matched_by_what_they_have() -> None:
    rng = np.random.default_rng(3)
    a = {name: weight for name, weight in expert(rng).items() if name != "gate"}
    order = rng.permutation(6)
    assert aligned(a, {"up": a["up"][order], "down": a["down"][:, order]}) == 1.0


def test_an_expert_of_zeros_is_like_no_other() -> None:
    a = expert(np.random.default_rng(4))
    zeros = {name: np.zeros_like(weight) for name, weight in a.items()}
    assert aligned(a, zeros) == 0.0


def test_projections_of_unequal_width_are_a_sentence() -> None:
    a = expert(np.random.default_rng(5))
    with pytest.raises(UnscorableWeight, match="not of one width"):
        Aligned().encode({**a, "up": a["up"][:4]})


def test_without_scipy_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    a = expert(np.random.default_rng(6))
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[aligned\]'"):
        aligned(a, a)


@pytest.mark.parametrize(
    ("kind", "finders"),
    [
        ("noise of 30 %", {"chance-corrected": 5, "correlation": 5, "aligned": 5}),
        ("another order, noise of 30 %", {"aligned": 5}),
    ],
)
def test_who_finds_a_planted_copy_in_every_layer(kind: str, finders: dict[str, Any], tmp_path: Path) -> None:
    evidence = score(plant(kind, tmp_path / "model"), signals="correlation,aligned")
    assert {name: found(evidence, criterion_named(name)) for name in finders} == finders
    pairs = evidence.of_pairs("aligned")
    assert all(np.unravel_index(matrix.argmax(), matrix.shape) == (TWO, FIVE) for matrix in pairs.values())
