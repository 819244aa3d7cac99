"""Mutual information of weights as if they were jointly Gaussian, on the scale of NMI."""

import numpy as np
import pytest
from scipy.special import digamma
from scipy.stats import differential_entropy, multivariate_normal, norm

import moeits
from moeits.choosing.criteria import criterion_named
from moeits.errors import SettingError
from moeits.signals.gaussian import Gaussian, _mean_of_chance
from moeits.signals.nmi import NMI
from tests.toys import make_toy, toy_evidence


def compared(a: np.ndarray, b: np.ndarray, signal: Gaussian | NMI | None = None) -> float:
    signal = signal or Gaussian()
    return float(signal.compare([signal.encode({"up": a})], [signal.encode({"up": b})])[0, 0])


def histogram_entropy(weight: np.ndarray, bins: str | int = "auto") -> float:
    counts, _ = np.histogram(weight, bins=bins)
    shares = counts[counts > 0] / weight.size
    return float(-(shares * np.log(shares)).sum())


def related(correlation: float, shape: tuple[int, int] = (300, 400), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian weights whose correlation is this one to the last digit."""
    rng = np.random.default_rng(seed)
    a, noise = (each - each.mean() for each in rng.standard_normal((2, *shape)))
    noise -= (noise * a).sum() / (a * a).sum() * a
    b = correlation * a / np.linalg.norm(a) + np.sqrt(1 - correlation**2) * noise / np.linalg.norm(noise)
    return a.astype(np.float32), (b * np.linalg.norm(a)).astype(np.float32)


@pytest.mark.parametrize("bins", ["auto", 32])
@pytest.mark.parametrize("correlation", [-0.9, 0.02, 0.3, 0.99])
def test_it_is_the_information_of_a_gaussian_of_numpys_correlation_by_the_entropies_of_numpys_histograms(
    correlation: float, bins: str | int
) -> None:
    a, b = related(correlation)
    r = np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1]
    wanted = -0.5 * np.log(1 - r**2) / np.sqrt(histogram_entropy(a, bins) * histogram_entropy(b, bins))
    assert compared(a, b, Gaussian(bins=bins)) == pytest.approx(wanted, rel=2e-5)


def test_the_information_is_that_of_scipys_bivariate_normal() -> None:
    a, b = related(0.6)
    signal = Gaussian()
    one, other = (signal.encode({"up": each}) for each in (a, b))
    both = multivariate_normal(cov=[[1, 0.6], [0.6, 1]])
    information = 2 * norm().entropy() - both.entropy()
    assert compared(a, b) * np.sqrt(one.entropy * other.entropy) == pytest.approx(information, rel=1e-5)
    assert information == pytest.approx(
        differential_entropy(a.ravel()) + differential_entropy(b.ravel()) - both.entropy(), abs=0.02
    )


@pytest.mark.parametrize("correlation", [0.2, 0.5, 0.9])
def test_of_gaussian_weights_it_is_what_nmi_has_above_its_floor(correlation: float) -> None:
    a, b = related(correlation, (700, 900))
    nmi = NMI()
    floor = nmi.floor([nmi.encode({"up": each}) for each in (a, b)])[0, 1]
    assert compared(a, b) == pytest.approx(compared(a, b, nmi) - floor, rel=0.06)


@pytest.mark.parametrize("form", [lambda w: w, lambda w: -w, lambda w: 2 * w + 1])
def test_a_copy_has_one_whatever_its_scale_and_a_constant_weight_shares_nothing(form) -> None:
    a = np.random.default_rng(0).standard_normal((40, 60)).astype(np.float32)
    # Its histogram may lose a count to another bin in float32, and information is at most the smaller entropy.
    assert compared(a, form(a)) == pytest.approx(1, abs=1e-2)
    assert compared(a, a) == 1
    constant = np.full_like(a, 0.5)
    assert compared(a, constant) == compared(constant, constant) == 0


@pytest.mark.parametrize("dimensions", [2, 3, 10, 23, 24, 1000, 2883583])
def test_chance_is_by_scipys_digamma_and_by_random_directions(dimensions: int) -> None:
    wanted = (digamma(dimensions / 2) - digamma((dimensions - 1) / 2)) / 2
    assert _mean_of_chance(dimensions) == pytest.approx(wanted, rel=1e-6)
    if 3 <= dimensions <= 1000:
        directions = np.random.default_rng(dimensions).standard_normal((20000, dimensions))
        squares = directions[:, 0] ** 2 / (directions**2).sum(axis=1)
        assert (-np.log1p(-squares) / 2).mean() == pytest.approx(wanted, rel=0.05)


def test_the_floor_is_what_permuted_entries_have_on_average() -> None:
    a, b = related(0.5, (24, 40))
    rng, signal = np.random.default_rng(1), Gaussian()
    floor = signal.floor([signal.encode({"up": each}) for each in (a, b)])
    mixed = [compared(a, rng.permutation(b.ravel()).reshape(b.shape)) for _ in range(2000)]
    assert floor[0, 1] == floor[1, 0] == pytest.approx(np.mean(mixed), rel=0.1)
    assert floor[0, 0] == 0


def test_it_may_remove_another_expert_than_the_correlation_it_is_made_of() -> None:
    """0 and 1 are most alike; 0 has one strong correlation beside, 1 has two weak ones whose sum is larger."""
    r = np.array([[0, 0.5, 0.3, 0.0], [0.5, 0, 0.16, 0.16], [0.3, 0.16, 0, 0.0], [0.0, 0.16, 0.0, 0]])
    shape = (64, 96)
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((shape[0] * shape[1], 5)))[0]
    directions -= directions.mean(axis=0)
    directions = np.linalg.qr(directions)[0][:, :4]
    weights = [w.reshape(shape).astype(np.float32) for w in (directions @ np.linalg.cholesky(r + np.eye(4)).T).T]
    signal = Gaussian()
    encoded = [signal.encode({"up": each}) for each in weights]
    information = signal.compare(encoded, encoded)
    np.fill_diagonal(information, 0)
    evidence = toy_evidence({0: r}, top_k=1, signals={"correlation": {0: r}, "gaussian": {0: information}})
    first = {
        name: criterion_named(name).rank(evidence, 0, np.random.default_rng(0)).removed[0]
        for name in ("correlation", "gaussian")
    }
    assert first == {"correlation": 1, "gaussian": 0}


def test_it_may_be_the_estimator_and_its_bins_are_those_of_nmi(tmp_path) -> None:
    toy = make_toy(tmp_path / "toy")
    evidence = moeits.score(toy, estimator="gaussian", bins=16)
    assert evidence.estimator == "gaussian"
    assert evidence.settings["bins"] in (16, "16")
    assert moeits.plan(evidence, tau=0.5).kept
    beside = moeits.score(toy, signals="gaussian")
    assert moeits.plan(beside, criterion="gaussian", experts_per_layer=3).criterion == "gaussian"
    with pytest.raises(SettingError, match="--bins 0 is out of range"):
        Gaussian(bins=0)
