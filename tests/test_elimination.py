"""Algorithm 3 of the paper, and the order in which experts go (method.md, section 2)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeits.choosing.criteria.moeits import eliminate, threshold_statistics
from moeits.choosing.elimination import EliminationOrder, steps_to
from moeits.errors import PlanError


def paper_algorithm_3(redundancy: list[list[float]], tau: float, floor: int = 1) -> list[int]:
    """The pseudocode of method.md, section 2, line by line, on lists: the experts that are kept, `floor` at least."""
    everything = [value for row in redundancy for value in row]
    rho = mean(everything) + tau * (quantile(everything, 0.75) - quantile(everything, 0.25))
    matrix = [list(row) for row in redundancy]
    names = list(range(len(matrix)))
    while any(matrix[i][j] > rho for i in range(len(names)) for j in range(len(names)) if i < j):
        if len(names) <= floor:
            break
        largest, i_max, j_max = None, None, None
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                if largest is None or matrix[i][j] > largest:
                    largest, i_max, j_max = matrix[i][j], i, j
        gone = i_max if mean(matrix[i_max]) > mean(matrix[j_max]) else j_max
        names.pop(gone)
        matrix.pop(gone)
        for row in matrix:
            row.pop(gone)
    return names


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def quantile(values: list[float], q: float) -> float:
    """Linear interpolation between the two values around (n - 1) q."""
    ordered, at = sorted(values), (len(values) - 1) * q
    below = int(at)
    above = min(below + 1, len(values) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def symmetric(upper: np.ndarray) -> np.ndarray:
    upper = np.triu(upper, 1)
    return upper + upper.T


def order_of(redundancy: np.ndarray, diagonal: str = "zero") -> EliminationOrder:
    removed, levels = eliminate(redundancy)
    average, iqr = threshold_statistics(redundancy, diagonal)
    return EliminationOrder(num_experts=len(redundancy), removed=removed, levels=levels, mean=average, iqr=iqr)


def keep(redundancy: np.ndarray, tau: float) -> tuple[int, ...]:
    order = order_of(redundancy)
    return order.kept_after(order.steps_at(tau))


# Quarters keep sums and means exact, so that ties of the algorithm are ties of the numbers, whoever adds them up.
quarters = st.integers(-8, 8).map(lambda n: n / 4)


@st.composite
def redundancy_matrices(draw: st.DrawFn) -> np.ndarray:
    count = draw(st.integers(2, 10))
    size = count * (count - 1) // 2
    values = draw(st.lists(quarters, min_size=size, max_size=size))
    matrix = np.zeros((count, count))
    matrix[np.triu_indices(count, 1)] = values
    return symmetric(matrix)


taus = st.floats(-20, 20)


# ---------------------------------------------------------------------------------------------- the paper's algorithm


@pytest.mark.parametrize("kind", ["uniform", "normal", "few_values", "two_values", "sparse", "around_zero", "nmi_like"])
def test_the_cut_order_equals_the_papers_pseudocode(kind: str) -> None:
    draws = {
        "uniform": lambda rng, e: rng.random((e, e)),
        "normal": lambda rng, e: rng.standard_normal((e, e)),
        "few_values": lambda rng, e: rng.integers(0, 4, (e, e)) / 4,
        "two_values": lambda rng, e: rng.integers(0, 2, (e, e)) / 2,
        "sparse": lambda rng, e: np.where(rng.random((e, e)) < 0.2, rng.integers(1, 5, (e, e)) / 8, 0.0),
        "around_zero": lambda rng, e: rng.integers(-3, 3, (e, e)) / 8,
        "nmi_like": lambda rng, e: 0.0043 + 0.001 * rng.random((e, e)) ** 4,
    }
    rng = np.random.default_rng(0)
    for _ in range(300):
        redundancy = symmetric(draws[kind](rng, int(rng.integers(2, 13))))
        for tau in (-0.5, 0.0, 0.3, 0.75, 1.25, 3.0):
            assert list(keep(redundancy, tau)) == paper_algorithm_3(redundancy.tolist(), tau)


@given(redundancy_matrices(), taus)
def test_any_matrix_is_cut_as_the_papers_pseudocode_cuts_it(redundancy: np.ndarray, tau: float) -> None:
    assert list(keep(redundancy, tau)) == paper_algorithm_3(redundancy.tolist(), tau)


def test_a_layer_worked_by_hand() -> None:
    redundancy = symmetric(np.array([[0, 0.9, 0.5, 0.1], [0, 0, 0.2, 0.4], [0, 0, 0, 0.3], [0, 0, 0, 0]]))
    # 0-1 is the largest pair and their means are equal (1.5 / 4): the higher id goes. Then 0-2 (0.6 / 3 < 0.8 / 3),
    # so 2 goes; of the last two the means are equal again.
    assert eliminate(redundancy) == ((1, 2, 3), (0.9, 0.5, 0.1))
    average, iqr = threshold_statistics(redundancy, "zero")
    assert average == pytest.approx(4.8 / 16)
    # The sixteen in order: four zeros, then 0.1, 0.2, 0.3, 0.4, 0.5, 0.9 twice each; quartiles at 3.75 and 11.25.
    assert iqr == pytest.approx(0.425 - 0.075)
    assert keep(redundancy, 0) == (0, 3)
    assert keep(redundancy, 1) == (0, 2, 3)
    assert keep(redundancy, 2) == (0, 1, 2, 3)


def test_on_equal_means_the_higher_id_goes() -> None:
    assert eliminate(symmetric(np.full((5, 5), 0.5)))[0] == (1, 2, 3, 4)


def test_a_zero_diagonal_is_never_the_largest_pair() -> None:
    removed, levels = eliminate(symmetric(np.full((4, 4), -0.5)))
    assert removed == (1, 2, 3)
    assert levels == (-0.5, -0.5, -0.5)


def test_a_layer_of_one_expert_has_nothing_to_remove() -> None:
    assert eliminate(np.zeros((1, 1))) == ((), ())
    assert threshold_statistics(np.zeros((1, 1)), "excluded") == (0.0, 0.0)


# ---------------------------------------------------------------------------------------------- thresholds


@given(redundancy_matrices())
def test_mean_and_iqr_are_taken_over_all_entries_with_the_diagonals_zeros(redundancy: np.ndarray) -> None:
    average, iqr = threshold_statistics(redundancy, "zero")
    entries = redundancy.reshape(-1).tolist()
    assert average == pytest.approx(mean(entries), abs=1e-15)
    assert iqr == pytest.approx(quantile(entries, 0.75) - quantile(entries, 0.25), abs=1e-15)


@given(redundancy_matrices())
def test_an_excluded_diagonal_is_in_neither(redundancy: np.ndarray) -> None:
    average, iqr = threshold_statistics(redundancy, "excluded")
    count = len(redundancy)
    entries = [float(redundancy[i, j]) for i in range(count) for j in range(count) if i != j]
    assert average == pytest.approx(mean(entries), abs=1e-15)
    assert iqr == pytest.approx(quantile(entries, 0.75) - quantile(entries, 0.25), abs=1e-15)


def test_a_layer_without_a_spread_is_cut_by_its_mean_whatever_tau_is() -> None:
    order = order_of(symmetric(np.full((8, 8), 0.5)))
    assert order.iqr == 0
    assert {order.steps_at(tau) for tau in (-1e9, 0.0, 1.25, 1e9)} == {7}
    assert order_of(np.zeros((8, 8))).steps_at(-1e9) == 0


# ---------------------------------------------------------------------------------------------- properties


@given(redundancy_matrices(), taus, taus)
def test_a_larger_tau_never_removes_more(redundancy: np.ndarray, tau: float, other: float) -> None:
    low, high = sorted((tau, other))
    assert set(keep(redundancy, low)) <= set(keep(redundancy, high))


@given(redundancy_matrices(), taus)
def test_what_is_kept_at_any_tau_is_what_is_left_after_so_many_steps_of_one_order(
    redundancy: np.ndarray, tau: float
) -> None:
    kept = paper_algorithm_3(redundancy.tolist(), tau)
    order = order_of(redundancy)
    assert list(order.kept_after(len(redundancy) - len(kept))) == kept


@given(redundancy_matrices())
def test_levels_never_rise_and_every_expert_but_one_is_removed_once(redundancy: np.ndarray) -> None:
    removed, levels = eliminate(redundancy)
    assert list(levels) == sorted(levels, reverse=True)
    assert len(set(removed)) == len(removed) == len(redundancy) - 1
    assert set(removed) < set(range(len(redundancy)))


@pytest.mark.parametrize("seed", range(100))
def test_relabelling_experts_relabels_the_answer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    redundancy = symmetric(rng.random((12, 12)))
    names = rng.permutation(12)
    relabelled = redundancy[np.ix_(names, names)]
    removed, levels = eliminate(redundancy)
    removed_again, levels_again = eliminate(relabelled)
    assert levels_again == levels
    # Of the last two the means are equal by nature, and the higher id goes: which one that is depends on the labels.
    assert [names[expert] for expert in removed_again][:-1] == list(removed)[:-1]


@given(redundancy_matrices(), st.integers(-3, 3))
def test_scaling_all_scores_by_a_power_of_two_changes_no_decision(redundancy: np.ndarray, power: int) -> None:
    assert eliminate(redundancy * 2.0**power)[0] == eliminate(redundancy)[0]


@given(redundancy_matrices())
def test_the_matrix_is_left_as_it_was(redundancy: np.ndarray) -> None:
    before = redundancy.copy()
    eliminate(redundancy)
    assert np.array_equal(redundancy, before)


# ---------------------------------------------------------------------------------------------- the order itself


def test_a_step_is_taken_only_above_the_threshold_not_on_it() -> None:
    order = EliminationOrder(num_experts=4, removed=(3, 1, 0), levels=(0.75, 0.5, 0.25), mean=0.0, iqr=0.25)
    assert order.steps_at(2.0) == 1
    assert order.steps_at(np.nextafter(2.0, -np.inf)) == 2
    assert order.steps_at(np.nextafter(3.0, -np.inf)) == 1
    assert order.steps_at(3.0) == 0
    assert order.kept_after(2) == (0, 2)


def test_an_order_without_levels_takes_no_tau() -> None:
    with pytest.raises(PlanError, match="has no scores to measure a threshold by: give a reduction, a size or counts"):
        EliminationOrder(num_experts=3, removed=(1, 0)).steps_at(1.0)


def test_steps_to_a_kept_set_are_found_only_where_it_lies_on_the_order() -> None:
    assert steps_to([3, 1, 0], [0, 1, 2, 3], 4) == 0
    assert steps_to([3, 1, 0], [0, 2], 4) == 2
    assert steps_to([3, 1, 0], [0, 1], 4) is None
    assert steps_to([3], [2], 4) is None
