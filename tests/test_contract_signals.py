"""One specification for every signal: whoever adds one to PAIR_SIGNALS or EXPERT_SIGNALS gets all of it applied."""

import json
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moeits.errors import MoeitsError, NonFiniteWeight, SettingError, ShapeMismatch, UnscorableWeight
from moeits.settings import flags_of
from moeits.signals import EXPERT_SIGNALS, PAIR_SIGNALS, ROUTER, SIGNALS, ExpertSignal, PairSignal
from moeits.signals.settings import Scoring
from moeits.stages.score import score

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
SHAPES = [(1, 1), (1, 2), (3, 1), (24, 40)]
PROJECTIONS, MODEL_TYPE = ("gate", "up", "down"), "qwen2_moe"


class Pairs:
    """A pair signal in its first pass over weights: each is every part of an expert."""

    def __init__(self, signal: PairSignal) -> None:
        self.signal = signal
        (self.parts, *_) = signal.passes(PROJECTIONS)

    def encode(self, weight: np.ndarray) -> Any:
        return self.signal.encode(parts_of(weight, self.parts))

    def compare(self, a: Any, b: Any) -> float:
        return float(self.signal.compare([a], [b])[0, 0])

    def floor(self, encoded: list[Any]) -> np.ndarray:
        floor = self.signal.floor(encoded)
        return np.zeros((len(encoded), len(encoded))) if floor is None else floor


def parts_of(weight: np.ndarray, parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A weight as the parts of one expert: `down` lies across, the router's is a row."""
    forms = {"down": np.ascontiguousarray(weight.T), ROUTER: weight.reshape(-1)}
    return {part: forms.get(part, weight) for part in parts}


@pytest.fixture(params=PAIR_SIGNALS, ids=lambda signal: signal.name)
def pair_signal(request: pytest.FixtureRequest) -> PairSignal:
    return request.param().for_model(PROJECTIONS, MODEL_TYPE)


@pytest.fixture(params=EXPERT_SIGNALS, ids=lambda signal: signal.name)
def expert_signal(request: pytest.FixtureRequest) -> ExpertSignal:
    return request.param().for_model(PROJECTIONS, MODEL_TYPE)


@pytest.fixture
def estimator(pair_signal: PairSignal) -> Pairs:
    return Pairs(pair_signal)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> Any:
    return DTYPES[request.param]


def weights(dtype: Any, shape: tuple[int, int] = (24, 40), count: int = 5) -> list[np.ndarray]:
    """Related weights, heavy tails and a constant among them."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(shape)
    mixed = [share * common + rng.standard_t(3, shape) for share in np.linspace(0, 2, count - 1)]
    return [weight.astype(dtype) for weight in (*mixed, np.full(shape, 0.5))]


# ---------------------------------------------------------------------------------------------- names and settings


def test_names_are_unique_and_not_those_of_other_tensors() -> None:
    names = [signal.name for signal in SIGNALS]
    assert len(set(names)) == len(names)
    assert not {"redundancy", "floor"} & set(names)


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
def test_it_is_of_the_kind_that_it_is_listed_as(signal: Any) -> None:
    assert isinstance(signal(), PairSignal) == (signal in PAIR_SIGNALS)
    assert isinstance(signal(), ExpertSignal) == (signal in EXPERT_SIGNALS)
    assert signal.goes_first in {"largest", "smallest"} if signal in EXPERT_SIGNALS else True


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
def test_its_settings_are_json_and_make_the_same_signal_again(signal: Any) -> None:
    assert is_dataclass(signal)
    settled = signal().for_model(PROJECTIONS, MODEL_TYPE)
    settings = dict(settled.settings)
    assert json.loads(json.dumps(settings)) == settings
    # Exact evidence is what it was before there were samples, so only these are left out, where they say nothing.
    assert {each.name for each in fields(signal)} - set(settings) <= {"sample", "sample_seed"}
    assert signal(**settings) == settled == settled.for_model(PROJECTIONS, MODEL_TYPE)


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
def test_each_of_its_settings_is_a_flag_with_its_default(signal: Any) -> None:
    flags, defaults = flags_of(score), {each.name: each.default for each in fields(Scoring)}
    for each in fields(signal):
        assert flags[each.name].help
        assert defaults[each.name] == each.default


# ---------------------------------------------------------------------------------------------- memory


def traced(work: Callable[[], Any]) -> tuple[int, int, Any]:
    """Bytes that some work holds in the end, and at its most; what is made at its first call only is not of it."""
    work()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        value = work()
        held, most = (bytes_ - before for bytes_ in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    return held, most, value


# Large enough that what grows with a weight is more than tables of a fixed size: a byte an entry is seen.
LARGE = (2048, 3072)


def large_weight(dtype: Any) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(LARGE, np.float32).astype(dtype)


def test_encoding_takes_no_more_memory_than_it_says(pair_signal: PairSignal, dtype: Any) -> None:
    weight = large_weight(dtype)
    (names, *_) = pair_signal.passes(PROJECTIONS)
    parts = parts_of(weight, names)
    held, most, encoded = traced(lambda: pair_signal.encode(parts))
    assert encoded is not None
    entries = sum(part.size for part in parts.values())
    said = pair_signal.memory(entries, weight.itemsize)
    # Objects and histograms take a little beside what grows with the weight.
    assert held < said.encoded + 100_000
    assert most < said.encoded + said.encoding + 100_000


def test_comparing_takes_no_more_memory_than_it_says(pair_signal: PairSignal, dtype: Any) -> None:
    weight = large_weight(dtype)
    (names, *_) = pair_signal.passes(PROJECTIONS)
    a, b = (pair_signal.encode(parts_of(each, names)) for each in (weight, weight[::-1]))
    said = pair_signal.memory(weight.size * len(names), weight.itemsize)
    held, most, _ = traced(lambda: pair_signal.compare([a], [b, a]))
    assert held < 100_000
    assert most < said.comparing + 100_000


def test_measuring_takes_no_more_memory_than_it_says(expert_signal: ExpertSignal, dtype: Any) -> None:
    weight = large_weight(dtype)
    parts = parts_of(weight, expert_signal.parts(PROJECTIONS))
    held, most, _ = traced(lambda: expert_signal.measure(parts))
    assert held < 100_000
    assert most < expert_signal.memory(weight.size * len(parts), weight.itemsize) + 100_000


# ---------------------------------------------------------------------------------------------- pairs of experts


def test_blocks_are_compared_as_their_pairs_are(pair_signal: PairSignal, estimator: Pairs, dtype: Any) -> None:
    encoded = [estimator.encode(weight) for weight in weights(dtype)]
    block = pair_signal.compare(encoded[:2], encoded)
    assert block.dtype == np.float64
    assert block.tolist() == [[estimator.compare(a, b) for b in encoded] for a in encoded[:2]]
    assert pair_signal.compare(encoded, []).shape == (5, 0)


def test_the_weights_of_its_passes_sum_to_one(pair_signal: PairSignal) -> None:
    assert sum(pair_signal.passes(PROJECTIONS).values()) == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_score_is_a_finite_number_and_symmetric(estimator: Pairs, dtype: Any, shape: tuple[int, int]) -> None:
    encoded = [estimator.encode(weight) for weight in weights(dtype, shape)]
    for a in encoded:
        for b in encoded:
            assert np.isfinite(estimator.compare(a, b))
            assert estimator.compare(a, b) == estimator.compare(b, a)


def test_a_weight_is_more_redundant_with_itself_than_with_any_other(estimator: Pairs, dtype: Any) -> None:
    *encoded, _constant = (estimator.encode(weight) for weight in weights(dtype))
    for i, a in enumerate(encoded):
        others = [estimator.compare(a, b) for j, b in enumerate(encoded) if j != i]
        assert estimator.compare(a, a) > max(others)


def test_related_weights_are_more_redundant_than_unrelated_ones(estimator: Pairs, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    a, own, other = rng.standard_normal((3, 64, 96))
    related, unrelated = (estimator.encode(weight.astype(dtype)) for weight in (2 * a + own, other))
    encoded = estimator.encode(a.astype(dtype))
    assert estimator.compare(encoded, related) > 1.5 * estimator.compare(encoded, unrelated)


def test_encoding_again_and_from_several_threads_gives_the_same_scores(estimator: Pairs, dtype: Any) -> None:
    made = weights(dtype)

    def scores() -> list[float]:
        encoded = [estimator.encode(weight) for weight in made]
        return [estimator.compare(a, b) for a in encoded for b in encoded]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: scores(), range(8)))
    assert all(other == found[0] for other in found)


def test_the_weight_is_left_as_it_was(estimator: Pairs, dtype: Any) -> None:
    weight = weights(dtype)[0]
    before = weight.tobytes()
    weight.flags.writeable = False
    estimator.compare(estimator.encode(weight), estimator.encode(weight))
    assert weight.tobytes() == before


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_floor_is_a_symmetric_matrix_with_a_zero_diagonal(
    estimator: Pairs, dtype: Any, shape: tuple[int, int]
) -> None:
    floor = estimator.floor([estimator.encode(weight) for weight in weights(dtype, shape)])
    assert floor.shape == (5, 5)
    assert np.isfinite(floor).all()
    assert np.array_equal(floor, floor.T)
    assert not floor.diagonal().any()


def test_the_floor_of_two_weights_does_not_depend_on_what_else_is_asked(estimator: Pairs, dtype: Any) -> None:
    encoded = [estimator.encode(weight) for weight in weights(dtype)]
    whole = estimator.floor(encoded)
    for i in range(5):
        for j in range(i):
            assert estimator.floor([encoded[i], encoded[j]])[0, 1] == whole[i, j]


def test_independent_weights_score_about_their_floor(estimator: Pairs) -> None:
    rng = np.random.default_rng(2)
    encoded = [estimator.encode(rng.standard_t(5, (256, 384)).astype(ml_dtypes.bfloat16)) for _ in range(6)]
    pairs = np.triu_indices(6, 1)
    scores = np.array([estimator.compare(encoded[i], encoded[j]) for i, j in zip(*pairs, strict=True)])
    floor = estimator.floor(encoded)[pairs]
    # What the mean of fifteen scores scatters by; and the floor is good to some percent.
    scatter = scores.std(ddof=1) / np.sqrt(scores.size)
    assert scores.mean() == pytest.approx(floor.mean(), rel=0.02, abs=4 * scatter)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(estimator: Pairs, dtype: Any, bad: float) -> None:
    weight = weights(dtype)[0]
    weight[2, 3] = bad
    with pytest.raises(NonFiniteWeight, match="NaN or infinity"):
        estimator.encode(weight)


def test_what_cannot_be_computed_with_is_refused(estimator: Pairs) -> None:
    for weight in (np.zeros((2, 3), np.int8), np.zeros((2, 3), ml_dtypes.float8_e4m3fn), np.zeros((0, 3), np.float32)):
        with pytest.raises(UnscorableWeight):
            estimator.encode(weight)


def test_weights_of_different_sizes_are_refused(estimator: Pairs, dtype: Any) -> None:
    small, large = weights(dtype, (4, 5))[0], weights(dtype, (4, 6))[0]
    with pytest.raises(ShapeMismatch, match="20 and 24"):
        estimator.compare(estimator.encode(small), estimator.encode(large))


# ---------------------------------------------------------------------------------------------- single experts


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_expert_has_a_finite_number_whoever_asks(
    expert_signal: ExpertSignal, dtype: Any, shape: tuple[int, int]
) -> None:
    names = expert_signal.parts(PROJECTIONS)
    parts = [parts_of(weight, names) for weight in (*weights(dtype, shape), np.zeros(shape, dtype))]
    values = [expert_signal.measure(each) for each in parts]
    assert np.isfinite(values).all()
    with ThreadPoolExecutor(4) as pool:
        assert all(again == values for again in pool.map(lambda _: [*map(expert_signal.measure, parts)], range(8)))


def test_an_expert_is_left_as_it_was(expert_signal: ExpertSignal, dtype: Any) -> None:
    weight = weights(dtype)[0]
    before = weight.tobytes()
    weight.flags.writeable = False
    expert_signal.measure(parts_of(weight, expert_signal.parts(PROJECTIONS)))
    assert weight.tobytes() == before


def test_what_an_expert_signal_cannot_compute_with_is_refused(expert_signal: ExpertSignal, dtype: Any) -> None:
    names = expert_signal.parts(PROJECTIONS)
    for bad in (np.nan, np.inf, -np.inf):
        weight = weights(dtype)[0]
        weight[2, 3] = bad
        with pytest.raises(NonFiniteWeight, match="NaN or infinity"):
            expert_signal.measure(parts_of(weight, names))
    for weight in (np.zeros((2, 3), np.int8), np.zeros((2, 3), ml_dtypes.float8_e4m3fn), np.zeros((0, 3), np.float32)):
        with pytest.raises(UnscorableWeight):
            expert_signal.measure(parts_of(weight, names))


# ---------------------------------------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"estimator": "nmj"},
            "--estimator nmj is not one of nmi, router-cosine, .* Did you mean 'nmi'?",
        ),
        ({"estimator": "aimer"}, "--estimator aimer is not one of nmi, router-cosine, "),
        ({"signals": "aimer,waight-norm"}, "--signals waight-norm is not one of .* Did you mean 'weight-norm'?"),
        ({"estimator": "router-cosine", "bins": 8}, "--estimator router-cosine has no setting bins .*leave --bins out"),
        ({"signals": "aimer", "router_norm": "l1"}, "--signals aimer has no setting router_norm .*--router-norm out"),
        ({"signals": "router-norm", "router_norm": "l3"}, "--router-norm l3 is not one of l2, l1."),
    ],
)
def test_a_signal_that_there_is_not_or_a_setting_that_none_has_is_a_sentence(
    arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingError, match=sentence) as raised:
        Scoring(**arguments).measured()
    assert isinstance(raised.value, MoeitsError)


def test_settings_reach_the_signals_that_have_them() -> None:
    scoring = Scoring(bins=8, signals="router-norm, aimer,router-norm", router_norm="l1")
    assert scoring.redundancy().settings["bins"] == 8
    assert [(signal.name, signal.settings) for signal in scoring.beside()] == [
        ("router-norm", {"router_norm": "l1"}),
        ("aimer", {}),
    ]
