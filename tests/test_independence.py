"""The noise floor: what independent weights would score (docs/method.md, section 5)."""

from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from scipy.stats import hypergeom, poisson

from moeits.signals.independence import _LARGE_MEAN, _poisson_excess, expected_information
from moeits.signals.nmi import NMI, Codes

DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t8": lambda rng, shape: rng.standard_t(8, shape),
    "t5": lambda rng, shape: rng.standard_t(5, shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape),
}


def encoded(draw: str, shape: tuple[int, int], rng: np.random.Generator) -> Codes:
    return NMI().encode_weight(DRAWS[draw](rng, shape).astype(ml_dtypes.bfloat16))


def permuted(codes: Codes, rng: np.random.Generator) -> Codes:
    return replace(codes, codes=rng.permutation(codes.codes))


def exact_information(a: np.ndarray, b: np.ndarray) -> float:
    """Expected mutual information over all permutations: every cell is hypergeometric, summed one by one."""
    n, total = int(a.sum()), 0.0
    for in_a in a:
        for in_b in b:
            counts = np.arange(1, min(in_a, in_b) + 1)
            share = counts / n * np.log(n * counts / (in_a * in_b))
            total += (hypergeom.pmf(counts, n, in_a, in_b) * share).sum()
    return total


# 0.3 % for the approximations (moments beyond the second, grid), or three standard errors of the mean over the
# permutations where those are few or small; measured over two seeds: -0.17 to 0.26 % for 1408 x 2048 entries.
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("shape", "permutations"), [((32, 48), 200), ((256, 512), 20), ((1408, 2048), 3)])
def test_the_floor_is_what_permuted_entries_score(draw: str, shape: tuple[int, int], permutations: int) -> None:
    rng, nmi = np.random.default_rng(5), NMI()
    a, b = encoded(draw, shape, rng), encoded(draw, shape, rng)
    scores = [nmi.compare_two(a, permuted(b, rng)) for _ in range(permutations)]
    error = np.std(scores, ddof=1) / np.sqrt(permutations)
    assert nmi.floor([a, b])[0, 1] == pytest.approx(np.mean(scores), rel=0.003, abs=3 * error)


def test_dependent_weights_stand_above_their_floor() -> None:
    rng, nmi = np.random.default_rng(0), NMI()
    common, own = rng.standard_normal((2, 256, 512))
    a, b = (nmi.encode_weight(weight.astype(ml_dtypes.bfloat16)) for weight in (common, 0.5 * common + own))
    assert nmi.compare_two(a, b) > 2 * nmi.floor([a, b])[0, 1]
    # The same two marginals, no longer in step: the floor is the same, the score falls onto it.
    assert nmi.compare_two(a, permuted(b, rng)) == pytest.approx(nmi.floor([a, b])[0, 1], rel=0.05)


def test_blocks_of_fp8_lift_independent_weights_above_their_floor_and_one_scale_does_not() -> None:
    """docs/method.md: a histogram sees which block an entry is of, and blocks of two experts have the same edges."""
    rng, nmi = np.random.default_rng(0), NMI()
    weights = rng.standard_t(8, (2, 512, 1024)).astype(np.float32)

    def above_floor(block: tuple[int, int]) -> float:
        encoded = [nmi.encode_weight(in_fp8(weight, block)) for weight in weights]
        return nmi.compare_two(*encoded) / float(nmi.floor(encoded)[0, 1])

    assert above_floor((128, 128)) > 1.2
    assert above_floor((512, 1024)) == pytest.approx(1, abs=0.02)


def in_fp8(weight: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Rounded to E4M3 with a scale for each block, whose largest becomes 448."""
    blocks = weight.reshape(weight.shape[0] // block[0], block[0], weight.shape[1] // block[1], block[1])
    scales = np.abs(blocks).max((1, 3), keepdims=True) / 448
    return ((blocks / scales).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scales).reshape(weight.shape)


@pytest.mark.parametrize("seed", range(30))
def test_the_floor_is_the_exact_expectation_over_all_permutations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(20, 200, rng.integers(2, 9))
    bins = int(rng.integers(2, a.size + 1))
    b = rng.multinomial(a.sum() - 20 * bins, rng.dirichlet(np.ones(bins))) + 20
    # Right in the first two moments only: 3 % off in the worst of many such tables, typically 0.2 %.
    assert expected_information([a, b])[0, 1] == pytest.approx(exact_information(a, b), rel=0.04)


def test_the_floor_of_gaussian_toys_is_the_exact_expectation_to_three_per_mille() -> None:
    rng = np.random.default_rng(3)
    a, b = encoded("normal", (32, 48), rng), encoded("t5", (32, 48), rng)
    floor = expected_information([a.counts, b.counts])[0, 1]
    assert floor == pytest.approx(exact_information(a.counts, b.counts), rel=0.003)


def test_the_expectation_of_poisson_counts_equals_direct_summation() -> None:
    means = np.exp(np.linspace(np.log(1e-7), np.log(2e4), 80))
    excess, curvature = _poisson_excess(means)
    counts = np.arange(60_000)
    values = counts * np.log(np.maximum(counts, 1))
    for mean, e, w in zip(means, excess, curvature, strict=True):
        chances = poisson.pmf(counts, mean)
        # Direct summation of E[c ln c] - m ln m cancels: 1e-16 times m ln m of it is rounding.
        assert e == pytest.approx(chances @ values - mean * np.log(mean), rel=1e-5, abs=1e-9 + 1e-14 * mean**2)
        assert w == pytest.approx(mean**2 / 2 * (chances[:-2] @ np.diff(values, 2)), rel=1e-4)


def test_large_means_join_small_ones_without_a_step() -> None:
    below, above = (_poisson_excess(np.array([_LARGE_MEAN * factor])) for factor in (1 - 1e-9, 1 + 1e-9))
    assert below[0][0] == pytest.approx(above[0][0], rel=1e-5)
    assert below[1][0] == pytest.approx(above[1][0], rel=1e-4)


def test_the_floor_is_symmetric_with_a_zero_diagonal_and_zero_for_constant_weights() -> None:
    rng, nmi = np.random.default_rng(1), NMI()
    constant = nmi.encode_weight(np.full((32, 48), 0.5, np.float32))
    floor = nmi.floor([encoded("t5", (32, 48), rng), constant, encoded("normal", (32, 48), rng)])
    assert np.allclose(floor, floor.T, rtol=0, atol=1e-14)
    assert not floor.diagonal().any()
    assert not floor[1].any()
    assert 0 < floor[0, 2] < 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1)])
def test_tiny_weights_have_a_floor_between_zero_and_one(shape: tuple[int, int]) -> None:
    rng, nmi = np.random.default_rng(2), NMI()
    floor = nmi.floor([nmi.encode_weight(rng.standard_normal(shape, dtype=np.float32)) for _ in range(3)])
    assert ((floor >= 0) & (floor <= 1)).all()
