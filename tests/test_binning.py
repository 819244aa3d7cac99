"""Numbers into bins: the bins are NumPy's to the last bit."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeits.errors import NonFiniteWeight, SettingError, UnscorableWeight
from moeits.signals.binning import _edges, _quantile, auto_bin_count, bin_weight

BF16, FP16, FP32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
LARGEST = {FP16: np.float16(65504), BF16: ml_dtypes.bfloat16(1.5e38), FP32: np.float32(1.7e38)}

Draw = Callable[[np.random.Generator, int], np.ndarray]
DRAWS: dict[str, Draw] = {
    "normal": lambda rng, n: 0.02 * rng.standard_normal(n),
    "student_t2": lambda rng, n: 0.02 * rng.standard_t(2, n),
    "far_from_zero": lambda rng, n: 100 + rng.standard_normal(n),
    "few_values": lambda rng, n: rng.integers(-2, 3, n) * 0.25,
    "outliers": lambda rng, n: np.where(rng.random(n) < 0.02, 30.0, 0.01) * rng.standard_normal(n),
    "subnormal": lambda rng, n: 3e-7 * rng.standard_normal(n),
    "mostly_zero": lambda rng, n: np.where(rng.random(n) < 0.8, 0.0, rng.standard_normal(n)),
}


def numpys_edges(weight: np.ndarray, bins: str | int = "auto") -> np.ndarray:
    return np.histogram_bin_edges(weight.astype(np.float32), bins=bins)


def our_edges(weight: np.ndarray) -> np.ndarray:
    values, counts = np.unique(weight.astype(np.float32), return_counts=True)
    return _edges(values[0], values[-1], auto_bin_count(values, counts))


def occupied_counts(weight: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(weight.astype(np.float32), edges)
    return counts[counts > 0]


def naive_codes(weight: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bins one by one as np.histogram defines them (half-open, the last one closed), empty ones not numbered."""
    raw = np.count_nonzero(weight.astype(np.float32).reshape(-1, 1) >= edges[:-1], axis=1)
    return np.unique(raw, return_inverse=True)[1]


@st.composite
def stored_weights(draw: st.DrawFn, dtype: np.dtype) -> np.ndarray:
    """Any finite bit patterns of a dtype, as many copies of some as you like, in a range float32 can express."""
    raw = draw(st.binary(min_size=dtype.itemsize, max_size=240))
    weight = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)
    weight = np.tile(weight, draw(st.integers(1, 5)))
    weight = np.append(weight, weight[: draw(st.integers(0, weight.size))])
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(weight) <= LARGEST[dtype], weight, dtype.type(0))


def assert_bins_are_numpys(weight: np.ndarray) -> None:
    try:
        edges = numpys_edges(weight)
    except ValueError:
        # NumPy refuses ranges too narrow for float32, even of a constant; so do we, except that a constant is one bin.
        if weight.astype(np.float32).min() < weight.astype(np.float32).max():
            with pytest.raises(SettingError):
                bin_weight(weight, "auto")
        return
    codes, counts = bin_weight(weight, "auto")
    if edges.size > 2:
        assert np.array_equal(our_edges(weight), edges)
    assert np.array_equal(counts, occupied_counts(weight, edges))
    assert np.array_equal(codes, naive_codes(weight, edges))


@settings(max_examples=400)
@given(stored_weights(BF16))
def test_bins_of_any_bfloat16_numbers_are_numpys(weight: np.ndarray) -> None:
    assert_bins_are_numpys(weight)


@settings(max_examples=400)
@given(stored_weights(FP16))
def test_bins_of_any_float16_numbers_are_numpys(weight: np.ndarray) -> None:
    assert_bins_are_numpys(weight)


@settings(max_examples=400)
@given(stored_weights(FP32))
def test_bins_of_any_float32_numbers_are_numpys(weight: np.ndarray) -> None:
    assert_bins_are_numpys(weight)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("draw", DRAWS)
def test_the_number_of_bins_and_their_edges_are_numpys_to_the_bit(draw: str, dtype: np.dtype) -> None:
    rng = np.random.default_rng(7)
    for _ in range(120):
        weight = DRAWS[draw](rng, int(rng.integers(2, 5000))).astype(dtype)
        edges, found = numpys_edges(weight), our_edges(weight)
        if edges.size == 2 and weight.min() == weight.max():
            continue
        assert found.dtype == edges.dtype == np.float32
        assert np.array_equal(found, edges)


@settings(max_examples=400)
@given(stored_weights(BF16), st.sampled_from([0.25, 0.75]))
def test_quartiles_are_rounded_as_numpy_rounds_them(weight: np.ndarray, q: float) -> None:
    values, counts = np.unique(weight.astype(np.float32), return_counts=True)
    found = _quantile(values, np.cumsum(counts), weight.size, q)
    assert found == np.percentile(weight.astype(np.float32), [100 * q])[0]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("draw", DRAWS)
def test_counts_are_those_of_np_histogram(draw: str, dtype: np.dtype) -> None:
    weight = DRAWS[draw](np.random.default_rng(8), 40_000).astype(dtype).reshape(200, 200)
    for bins in ("auto", 1, 2, 37, 1000):
        codes, counts = bin_weight(weight, bins)
        assert np.array_equal(counts, occupied_counts(weight, numpys_edges(weight, bins)))
        assert np.array_equal(np.bincount(codes), counts)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.02, -3.0, 6e4, 6e-8])
def test_a_constant_weight_has_one_bin(dtype: np.dtype, value: float) -> None:
    codes, counts = bin_weight(np.full((3, 5), value, dtype), "auto")
    assert not codes.any()
    assert counts.tolist() == [15]


def test_a_constant_that_numpy_cannot_bin_still_has_one_bin() -> None:
    weight = np.full((3, 5), 1e30, np.float32)
    with pytest.raises(ValueError, match="Too many bins"):
        np.histogram_bin_edges(weight, bins="auto")
    assert bin_weight(weight, "auto")[1].tolist() == [15]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_both_zeros_fall_into_one_bin(dtype: np.dtype) -> None:
    weight = np.array([0.0, -0.0, 1.0, -1.0, -0.0, 0.0], dtype)
    codes, _ = bin_weight(weight, 3)
    assert codes.tolist() == [1, 1, 2, 0, 1, 1]
    assert bin_weight(np.array([0.0, -0.0], dtype), "auto")[1].tolist() == [2]


def test_a_weight_is_binned_in_row_major_order_whatever_its_memory_layout() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 60)).astype(BF16)
    codes, _ = bin_weight(weight, "auto")
    transposed, _ = bin_weight(np.asfortranarray(weight), "auto")
    strided, _ = bin_weight(np.repeat(weight, 2, axis=1)[:, ::2], "auto")
    assert np.array_equal(codes, transposed)
    assert np.array_equal(codes, strided)


def test_sixteen_bit_numbers_are_widened_never_rounded() -> None:
    weight = np.random.default_rng(0).standard_t(4, (64, 64)).astype(BF16)
    codes, counts = bin_weight(weight, "auto")
    widened_codes, widened_counts = bin_weight(weight.astype(np.float32), "auto")
    assert np.array_equal(codes, widened_codes)
    assert np.array_equal(counts, widened_counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_nan_and_infinity_are_refused(dtype: np.dtype, bad: float) -> None:
    weight = np.linspace(-1, 1, 30).astype(dtype)
    weight[17] = bad
    for bins in ("auto", 10):
        with pytest.raises(NonFiniteWeight, match="NaN or infinity"):
            bin_weight(weight, bins)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_a_range_that_float32_cannot_express_is_a_sentence(dtype: np.dtype) -> None:
    for bins in ("auto", 10):
        with pytest.raises(UnscorableWeight, match=r"-3.*e\+38 to 3.*e\+38 span more than float32 can express"):
            bin_weight(np.array([-3e38, 0, 3e38], np.float32).astype(dtype), bins)


def test_where_numpy_says_too_many_bins_we_say_it_in_a_sentence() -> None:
    # At a million float32 is coarse: nine neighbours leave no room for the edges of 34 bins between them.
    weight = np.float32(2**20) + np.float32(0.125) * np.arange(9, dtype=np.float32).repeat(2000)
    with pytest.raises(ValueError, match="Too many bins"):
        np.histogram_bin_edges(weight, bins="auto")
    with pytest.raises(SettingError, match="--bins"):
        bin_weight(weight, "auto")
    with pytest.raises(SettingError, match="too narrow for 65536 bins in float32; ask for fewer with --bins"):
        bin_weight(np.array([1, 1.001], np.float16), 65536)


@pytest.mark.parametrize("dtype", [np.float64, np.int8, ml_dtypes.float8_e4m3fn])
def test_other_dtypes_are_refused_with_what_to_do(dtype: type) -> None:
    with pytest.raises(UnscorableWeight, match="score the bfloat16, float16 or float32 parent"):
        bin_weight(np.zeros((2, 2), dtype), "auto")


def test_an_empty_weight_is_refused() -> None:
    with pytest.raises(UnscorableWeight, match="empty"):
        bin_weight(np.zeros((0, 4), np.float32), "auto")
