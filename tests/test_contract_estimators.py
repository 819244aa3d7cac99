"""One specification for every redundancy estimator: whoever adds one to ESTIMATORS gets all of it applied."""

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moeits.errors import NonFiniteWeight, SettingError, ShapeMismatch, UnscorableWeight
from moeits.signals import ESTIMATORS, RedundancyEstimator, estimator_named

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
SHAPES = [(1, 1), (1, 2), (3, 1), (24, 40)]


@pytest.fixture(params=ESTIMATORS, ids=lambda estimator: estimator.name)
def estimator(request: pytest.FixtureRequest) -> RedundancyEstimator:
    return request.param()


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> Any:
    return DTYPES[request.param]


def weights(dtype: Any, shape: tuple[int, int] = (24, 40), count: int = 5) -> list[np.ndarray]:
    """Related weights, heavy tails and a constant among them."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(shape)
    mixed = [share * common + rng.standard_t(3, shape) for share in np.linspace(0, 2, count - 1)]
    return [weight.astype(dtype) for weight in (*mixed, np.full(shape, 0.5))]


def test_names_are_unique_and_found_by_name() -> None:
    names = [estimator.name for estimator in ESTIMATORS]
    assert len(set(names)) == len(names)
    for estimator in ESTIMATORS:
        assert type(estimator_named(estimator.name)) is estimator
    with pytest.raises(SettingError, match=r"Known: .*nmi"):
        estimator_named("nothing like it")


def test_settings_are_plain_json_and_make_the_same_estimator_again(estimator: RedundancyEstimator) -> None:
    settings = dict(estimator.settings)
    assert json.loads(json.dumps(settings)) == settings
    assert dict(estimator_named(estimator.name, **settings).settings) == settings


def test_unknown_settings_are_refused(estimator: RedundancyEstimator) -> None:
    with pytest.raises(SettingError, match=f"--estimator {estimator.name} has no unheard_of"):
        estimator_named(estimator.name, unheard_of=1)


def test_encoding_takes_no_more_memory_than_it_says(estimator: RedundancyEstimator, dtype: Any) -> None:
    (weight, *_) = weights(dtype, (300, 400))
    estimator.encode(weight)  # whatever is imported or compiled on first use is not of this weight
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        encoded = estimator.encode(weight)
        held, most = (traced - before for traced in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert encoded is not None
    said = estimator.encoded_bytes(weight.size)
    # Objects and histograms take a little beside what grows with the weight.
    assert weight.size < held < said + 20_000
    assert most < said + estimator.working_bytes(weight.size, weight.itemsize) + 20_000


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_score_is_a_finite_number_and_symmetric(
    estimator: RedundancyEstimator, dtype: Any, shape: tuple[int, int]
) -> None:
    encoded = [estimator.encode(weight) for weight in weights(dtype, shape)]
    for a in encoded:
        for b in encoded:
            assert np.isfinite(estimator.compare(a, b))
            assert estimator.compare(a, b) == estimator.compare(b, a)


def test_a_weight_is_more_redundant_with_itself_than_with_any_other(estimator: RedundancyEstimator, dtype: Any) -> None:
    *encoded, _constant = (estimator.encode(weight) for weight in weights(dtype))
    for i, a in enumerate(encoded):
        others = [estimator.compare(a, b) for j, b in enumerate(encoded) if j != i]
        assert estimator.compare(a, a) > max(others)


def test_related_weights_are_more_redundant_than_unrelated_ones(estimator: RedundancyEstimator, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    a, own, other = rng.standard_normal((3, 64, 96))
    related, unrelated = (estimator.encode(weight.astype(dtype)) for weight in (2 * a + own, other))
    encoded = estimator.encode(a.astype(dtype))
    assert estimator.compare(encoded, related) > 1.5 * estimator.compare(encoded, unrelated)


def test_encoding_again_and_from_several_threads_gives_the_same_scores(
    estimator: RedundancyEstimator, dtype: Any
) -> None:
    made = weights(dtype)

    def scores() -> list[float]:
        encoded = [estimator.encode(weight) for weight in made]
        return [estimator.compare(a, b) for a in encoded for b in encoded]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: scores(), range(8)))
    assert all(other == found[0] for other in found)


def test_the_weight_is_left_as_it_was(estimator: RedundancyEstimator, dtype: Any) -> None:
    weight = weights(dtype)[0]
    before = weight.tobytes()
    weight.flags.writeable = False
    estimator.compare(estimator.encode(weight), estimator.encode(weight))
    assert weight.tobytes() == before


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_floor_is_a_symmetric_matrix_with_a_zero_diagonal(
    estimator: RedundancyEstimator, dtype: Any, shape: tuple[int, int]
) -> None:
    floor = estimator.floor([estimator.encode(weight) for weight in weights(dtype, shape)])
    assert floor.shape == (5, 5)
    assert np.isfinite(floor).all()
    assert np.array_equal(floor, floor.T)
    assert not floor.diagonal().any()


def test_the_floor_of_two_weights_does_not_depend_on_what_else_is_asked(
    estimator: RedundancyEstimator, dtype: Any
) -> None:
    encoded = [estimator.encode(weight) for weight in weights(dtype)]
    whole = estimator.floor(encoded)
    for i in range(5):
        for j in range(i):
            assert estimator.floor([encoded[i], encoded[j]])[0, 1] == whole[i, j]


def test_independent_weights_score_about_their_floor(estimator: RedundancyEstimator) -> None:
    rng = np.random.default_rng(2)
    encoded = [estimator.encode(rng.standard_t(5, (256, 384)).astype(ml_dtypes.bfloat16)) for _ in range(6)]
    pairs = np.triu_indices(6, 1)
    scores = np.array([estimator.compare(encoded[i], encoded[j]) for i, j in zip(*pairs, strict=True)])
    floor = estimator.floor(encoded)[pairs]
    # What the mean of fifteen scores scatters by; and the floor is good to some percent.
    scatter = scores.std(ddof=1) / np.sqrt(scores.size)
    assert scores.mean() == pytest.approx(floor.mean(), rel=0.02, abs=4 * scatter)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(estimator: RedundancyEstimator, dtype: Any, bad: float) -> None:
    weight = weights(dtype)[0]
    weight[2, 3] = bad
    with pytest.raises(NonFiniteWeight, match="NaN or infinity"):
        estimator.encode(weight)


def test_what_cannot_be_computed_with_is_refused(estimator: RedundancyEstimator) -> None:
    for weight in (np.zeros((2, 3), np.int8), np.zeros((2, 3), ml_dtypes.float8_e4m3fn), np.zeros((0, 3), np.float32)):
        with pytest.raises(UnscorableWeight):
            estimator.encode(weight)


def test_weights_of_different_sizes_are_refused(estimator: RedundancyEstimator, dtype: Any) -> None:
    small, large = weights(dtype, (4, 5))[0], weights(dtype, (4, 6))[0]
    with pytest.raises(ShapeMismatch, match="20 and 24"):
        estimator.compare(estimator.encode(small), estimator.encode(large))
