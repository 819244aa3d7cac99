"""Plans: every budget is a cut of the same orders, and says in numbers what it leaves (method.md, section 2)."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeits.choosing.criteria import moeits as moeits_criterion
from moeits.choosing.planner import Planner
from moeits.choosing.pruning_plan import PruningPlan, check_groups, even_out
from moeits.errors import BudgetOutOfReach, EvidenceError, PlanError, SettingError
from moeits.evidence import Evidence
from moeits.stages.plan import plan
from tests.test_elimination import paper_algorithm_3
from tests.toys import random_redundancy, toy_evidence


def random_evidence(seed: int = 0, *, layers: int = 3, experts: int = 8, top_k: int = 2, **sizes: Any) -> Evidence:
    rng = np.random.default_rng(seed)
    return toy_evidence({i: random_redundancy(rng, experts) for i in range(layers)}, top_k=top_k, **sizes)


def by_the_paper(evidence: Evidence, tau: float, least: int) -> dict[int, tuple[int, ...]]:
    return {i: tuple(paper_algorithm_3(r.tolist(), tau, least)) for i, r in evidence.redundancy.items()}


def counts(made: PruningPlan) -> dict[int, int]:
    return {layer: len(kept) for layer, kept in made.kept.items()}


# ---------------------------------------------------------------------------------------------- tau


@pytest.mark.parametrize("tau", [-2, 0, 0.5, 1.25, 3])
def test_a_plan_keeps_what_the_paper_keeps_down_to_top_k(tau: float) -> None:
    evidence = random_evidence()
    assert plan(evidence, tau=tau).kept == by_the_paper(evidence, tau, least=2)


def test_no_layer_keeps_fewer_experts_than_top_k_and_floored_layers_are_named() -> None:
    evidence = random_evidence(top_k=3)
    low, high = plan(evidence, tau=-100), plan(evidence, tau=100)
    assert set(counts(low).values()) == {3}
    assert low.summary["floored_layers"] == [0, 1, 2]
    assert set(counts(high).values()) == {8}
    assert high.summary["floored_layers"] == []


def test_a_layer_that_ends_on_its_floor_by_itself_is_not_floored() -> None:
    evidence = random_evidence(layers=1)
    order = Planner(evidence).orders[0]
    assert order.levels is not None
    # A tau between the critical taus of the last step above the floor and of the first below it.
    tau = ((order.levels[5] + order.levels[6]) / 2 - order.mean) / order.iqr
    made = plan(evidence, tau=tau)
    assert counts(made) == {0: 2}
    assert made.summary["floored_layers"] == []


def test_min_experts_sets_another_floor_above_or_below_top_k() -> None:
    evidence = random_evidence(top_k=2)
    assert set(counts(plan(evidence, tau=-100, min_experts=5)).values()) == {5}
    assert set(counts(plan(evidence, tau=-100, min_experts=1)).values()) == {1}
    assert set(counts(plan(evidence, tau=-100, min_experts=99)).values()) == {8}


def test_a_floor_changes_nothing_above_it() -> None:
    evidence = random_evidence()
    for tau in (0, 0.5, 1):
        free, floored = (plan(evidence, tau=tau, min_experts=least) for least in (1, 5))
        for layer in free.kept:
            assert len(floored.kept[layer]) == max(5, len(free.kept[layer]))
            assert set(free.kept[layer]) <= set(floored.kept[layer])


def test_the_diagonal_can_be_left_out_of_the_threshold() -> None:
    evidence = random_evidence()
    excluded = toy_evidence(evidence.redundancy, top_k=2, settings={"diagonal": "excluded"})
    for layer, order in Planner(excluded).orders.items():
        entries = evidence.redundancy[layer][~np.eye(8, dtype=bool)]
        assert order.mean == pytest.approx(entries.mean())
        assert order.iqr == pytest.approx(np.subtract(*np.percentile(entries, [75, 25])))
    assert plan(excluded, tau=0).kept != plan(evidence, tau=0).kept


@pytest.mark.parametrize("tau", ["much", float("nan"), float("inf"), [1]])
def test_a_tau_that_is_no_number_is_a_sentence(tau: Any) -> None:
    with pytest.raises(SettingError, match=r"--tau .* is not a number"):
        plan(random_evidence(), tau=tau)


# ---------------------------------------------------------------------------------------------- solving for tau


def check_largest_tau(evidence: Evidence, made: PruningPlan, met: Any, least: int = 2) -> None:
    """The plan is the paper's at its tau and meets the budget; at the next larger tau the budget is not met."""
    tau = made.settings["tau"]
    assert made.kept == by_the_paper(evidence, tau, least)
    assert met(made.kept)
    assert not met(by_the_paper(evidence, float(np.nextafter(tau, np.inf)), least))


@pytest.mark.parametrize("reduction", [0.04, 0.1, 0.25, 1 / 3, 0.5, 0.6, 0.75])
def test_reduction_takes_the_largest_tau_that_removes_that_share(reduction: float) -> None:
    for seed in range(5):
        evidence = random_evidence(seed)

        def met(kept: Any) -> bool:
            return sum(8 - len(k) for k in kept.values()) >= reduction * 24 - 1e-9

        made = plan(evidence, reduction=reduction)
        check_largest_tau(evidence, made, met)
        assert made.summary["reduction"] >= reduction


@pytest.mark.parametrize("max_size", [2900, 3331, 4000, 5000, 6000, 7200])
def test_max_size_takes_the_largest_tau_that_leaves_so_many_bytes(max_size: int) -> None:
    for seed in range(5):
        # 24 experts of 220 bytes and a router row of 20 each, 2000 bytes of other tensors.
        evidence = random_evidence(seed, expert_parameters=110)

        def met(kept: Any) -> bool:
            return 2000 + sum(240 * len(k) for k in kept.values()) <= max_size

        if max_size < 2000 + 6 * 240:
            with pytest.raises(BudgetOutOfReach):
                plan(evidence, max_size=max_size)
            continue
        made = plan(evidence, max_size=max_size)
        check_largest_tau(evidence, made, met)
        assert made.summary["bytes_after"] <= max_size


def test_a_budget_of_many_experts_may_need_a_negative_tau() -> None:
    made = plan(random_evidence(), reduction=0.75)
    assert made.settings["tau"] < 0


def test_reduction_zero_and_a_size_that_is_already_met_remove_nothing() -> None:
    evidence = random_evidence()
    for made in (plan(evidence, reduction=0), plan(evidence, max_size="1GiB")):
        assert set(counts(made).values()) == {8}
        assert made.summary["reduction"] == 0


@pytest.mark.parametrize("budget", [{"reduction": 0.3}, {"reduction": 0}, {"max_size": 4000}])
def test_a_plan_made_by_a_budget_is_made_again_by_its_own_tau(budget: dict[str, Any]) -> None:
    evidence = random_evidence()
    made = plan(evidence, **budget)
    again = plan(evidence, tau=made.settings["tau"])
    assert again.kept == made.kept
    assert again.summary == made.summary


few_levels = st.lists(st.integers(0, 3), min_size=30, max_size=30)


@settings(max_examples=60)
@given(few_levels, st.integers(0, 15))
def test_ties_within_and_across_layers_go_together(levels: list[int], removed: int) -> None:
    upper = np.triu_indices(6, 1)
    matrices = {}
    for layer in range(2):
        matrix = np.zeros((6, 6))
        matrix[upper] = np.array(levels[15 * layer : 15 * layer + 15]) / 4
        matrices[layer] = matrix + matrix.T
    evidence = toy_evidence(matrices)
    planner = Planner(evidence)
    reduction = min(removed, 10) / 12
    reachable = planner.sizes(planner.steps_at(-1e9)).reduction
    if reachable < reduction:
        with pytest.raises(BudgetOutOfReach):
            planner.plan(reduction=reduction)
        return
    made = planner.plan(reduction=reduction)
    tau = made.settings["tau"]
    assert made.kept == by_the_paper(evidence, tau, least=1)
    assert made.summary["reduction"] >= reduction - 1e-12
    beyond = by_the_paper(evidence, float(np.nextafter(tau, np.inf)), least=1)
    share = 1 - sum(map(len, beyond.values())) / 12
    # Layers without a spread are cut at every tau, so a budget may be met however large tau is.
    assert share < reduction or beyond == by_the_paper(evidence, 1e9, least=1)


def test_a_layer_without_a_spread_is_cut_at_every_tau_or_at_none() -> None:
    flat, none = np.full((8, 8), 0.5), np.zeros((8, 8))
    np.fill_diagonal(flat, 0)
    evidence = toy_evidence({0: flat, 1: none, 2: random_redundancy(np.random.default_rng(0), 8)}, top_k=2)
    for tau in (-1000, 1.25, 1000):
        made = plan(evidence, tau=tau)
        assert (len(made.kept[0]), len(made.kept[1])) == (2, 8)
    assert counts(plan(evidence, reduction=0.4)) == {0: 2, 1: 8, 2: 4}
    with pytest.raises(BudgetOutOfReach, match=r"at most 50\.0%"):
        plan(evidence, reduction=0.6)


def test_a_nearly_flat_layer_does_not_upset_the_search() -> None:
    nearly_flat = np.full((8, 8), 0.5) + np.triu(np.full((8, 8), 1e-300), 1)
    nearly_flat[0, 1] += 1e-16
    nearly_flat = np.triu(nearly_flat, 1) + np.triu(nearly_flat, 1).T
    evidence = toy_evidence({0: nearly_flat, 1: random_redundancy(np.random.default_rng(0), 8)}, top_k=2)
    made = plan(evidence, reduction=0.5)
    assert plan(evidence, tau=made.settings["tau"]).kept == made.kept
    assert made.summary["reduction"] >= 0.5


# ---------------------------------------------------------------------------------------------- counts


def test_experts_per_layer_cuts_every_order_at_the_same_count_and_has_no_tau() -> None:
    evidence = random_evidence()
    made = plan(evidence, experts_per_layer=5)
    assert set(counts(made).values()) == {5}
    assert "tau" not in made.settings
    assert made.summary["floored_layers"] == []
    for layer, redundancy in evidence.redundancy.items():
        assert made.kept[layer] == tuple(paper_algorithm_3(redundancy.tolist(), -1e9, floor=5))


def test_like_takes_another_plans_counts_layer_by_layer(tmp_path: Path) -> None:
    evidence = random_evidence()
    other = plan(evidence, tau=0.2, output=tmp_path / "plan.json")
    assert len(set(counts(other).values())) > 1
    made = plan(evidence, like=tmp_path / "plan.json", criterion="random", seed=1)
    assert counts(made) == counts(other)
    assert made.kept != other.kept
    assert made.settings["like"] == other.sha256
    assert plan(evidence, like=other).kept == other.kept


def test_a_random_plan_is_the_same_for_a_seed_and_another_for_another() -> None:
    evidence = random_evidence(experts=16)
    kept = [plan(evidence, experts_per_layer=8, criterion="random", seed=seed) for seed in (0, 0, 1)]
    assert kept[0] == kept[1]
    assert kept[0].kept != kept[2].kept
    assert kept[0].settings["seed"] == 0
    assert all(level is None for steps in kept[0].order.values() for _, level in steps)


def test_a_random_plan_needs_no_scores() -> None:
    evidence = random_evidence()
    unscored = toy_evidence(evidence.redundancy, top_k=2)
    object.__setattr__(unscored, "redundancy", {})
    assert plan(unscored, experts_per_layer=4, criterion="random") == plan(
        evidence, experts_per_layer=4, criterion="random"
    )
    with pytest.raises(EvidenceError, match="needs redundancy, and the evidence has none of layer 0"):
        plan(unscored, experts_per_layer=4)


def test_every_expert_is_as_likely_to_be_kept_at_random() -> None:
    evidence = random_evidence(layers=1, experts=8)
    kept = [plan(evidence, experts_per_layer=4, criterion="random", seed=seed).kept[0] for seed in range(400)]
    share = np.bincount(np.concatenate(kept), minlength=8) / 400
    # Five standard deviations of a share of 1/2 in 400 draws.
    assert np.all(np.abs(share - 0.5) < 5 * 0.025)


def test_a_random_plan_takes_no_tau() -> None:
    with pytest.raises(SettingError, match=r"--criterion random has none: give --reduction"):
        plan(random_evidence(), tau=0.5, criterion="random")


# ---------------------------------------------------------------------------------------------- what is out of reach


def test_a_budget_out_of_reach_says_what_is_the_best_that_can_be_had() -> None:
    evidence = random_evidence(top_k=2)
    with pytest.raises(BudgetOutOfReach, match=r"with top_k=2 in each of 3 layers at most 75\.0% .* --min-experts"):
        plan(evidence, reduction=0.8)
    with pytest.raises(BudgetOutOfReach, match=r"with at least 4 experts in each of 3 layers at most 50\.0%"):
        plan(evidence, reduction=0.8, min_experts=4)
    assert plan(evidence, reduction=0.8, min_experts=1).summary["reduction"] >= 0.8
    assert plan(evidence, reduction=0.75).summary["reduction"] == 0.75
    with pytest.raises(BudgetOutOfReach, match=r"at least 3\.2 KiB \(3320 bytes\) remain"):
        plan(evidence, max_size=3000)
    assert plan(evidence, max_size=3320).summary["bytes_after"] == 3320
    for count in (1, 9):
        with pytest.raises(BudgetOutOfReach, match="layer 0 has 8 experts and keeps at least 2"):
            plan(evidence, experts_per_layer=count)


@pytest.mark.parametrize("experts", [7, 8, 11])
def test_what_the_sentence_asks_for_can_be_had(experts: int) -> None:
    evidence = random_evidence(experts=experts)
    with pytest.raises(BudgetOutOfReach) as raised:
        plan(evidence, reduction=1)
    best = re.search(r"Ask for ([\d.]+) or less", str(raised.value))
    assert best is not None
    assert plan(evidence, reduction=float(best[1])).summary["experts_kept"] == 6
    with pytest.raises(BudgetOutOfReach) as raised:
        plan(evidence, max_size=1)
    least = re.search(r"\((\d+) bytes\)", str(raised.value))
    assert least is not None
    assert plan(evidence, max_size=least[1]).summary["experts_kept"] == 6


def test_a_plan_like_one_below_the_floor_or_of_other_layers_is_refused() -> None:
    other = plan(random_evidence(), experts_per_layer=3)
    with pytest.raises(BudgetOutOfReach, match="keeps 3 experts in layer 0, which has 8 and keeps at least 5"):
        plan(random_evidence(), like=other, min_experts=5)
    with pytest.raises(PlanError, match=r"has layers 0 to 2 \(3\), this model has 0 to 1 \(2\)"):
        plan(random_evidence(layers=2), like=other)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "Give exactly one of --tau, --reduction, --max-size, --experts-per-layer, --like."),
        ({"tau": 1, "reduction": 0.5}, "not 2"),
        ({"reduction": 1.5}, "a share from 0 to 1"),
        ({"reduction": -0.1}, "a share from 0 to 1"),
        ({"max_size": "large"}, "--max-size large is not a size"),
        ({"tau": 1, "min_experts": 0}, "keeps at least one"),
        ({"tau": 1, "seed": -1}, "--seed -1 is out of range: give 0 or more"),
        ({"tau": 1, "criterion": "randon"}, "Did you mean 'random'"),
    ],
)
def test_arguments_that_make_no_sense_are_sentences(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError) as raised:
        plan(random_evidence(), **arguments)
    assert sentence in str(raised.value)


# ---------------------------------------------------------------------------------------------- groups


GROUPS, PER_GROUP = 3, 4


def grouped_evidence(seed: int = 0, *, least_per_group: int = 1, **changes: Any) -> Evidence:
    evidence = random_evidence(seed, experts=GROUPS * PER_GROUP, groups=GROUPS, **changes)
    layers = {i: replace(facts, least_per_group=least_per_group) for i, facts in evidence.layers.items()}
    return replace(evidence, inventory=replace(evidence.inventory, layers=layers))


def in_groups(experts: tuple[int, ...]) -> list[set[int]]:
    return [{e for e in experts if e // PER_GROUP == group} for group in range(GROUPS)]


@pytest.mark.parametrize("tau", [-100, -1, 0, 0.25, 0.5, 1, 1.5, 100])
def test_at_every_tau_a_group_loses_as_many_as_the_one_that_algorithm_3_takes_fewest_from(tau: float) -> None:
    for seed in range(5):
        evidence = grouped_evidence(seed)
        made = plan(evidence, tau=tau)
        for layer, redundancy in evidence.redundancy.items():
            by_paper = tuple(paper_algorithm_3(redundancy.tolist(), tau, floor=1))
            fewest = min(PER_GROUP - len(group) for group in in_groups(by_paper))
            assert [len(group) for group in in_groups(made.kept[layer])] == [PER_GROUP - fewest] * GROUPS
            assert set(by_paper) <= set(made.kept[layer]), "what goes would go without groups too"


def test_within_a_group_experts_go_in_the_order_of_the_layer() -> None:
    free, limited = random_evidence(experts=12), grouped_evidence()
    for layer, order in Planner(limited).orders.items():
        everyone = Planner(free).orders[layer]
        for group in range(GROUPS):
            own = [expert for expert in everyone.removed if expert // PER_GROUP == group]
            assert [expert for expert in order.removed if expert // PER_GROUP == group] == own[: PER_GROUP - 1]
        assert list(order.levels or ()) == sorted(order.levels or (), reverse=True)


def test_a_router_of_one_group_is_planned_as_ever() -> None:
    evidence = random_evidence()
    for order in Planner(evidence).orders.values():
        assert order.by_groups(1) is order


@pytest.mark.parametrize("budget", [{"reduction": 0.3}, {"reduction": 0.5}, {"reduction": 0.75}, {"max_size": 6500}])
def test_a_budget_takes_the_largest_tau_at_which_whole_groups_meet_it(budget: dict[str, Any]) -> None:
    for seed in range(5):
        evidence = grouped_evidence(seed, expert_parameters=110)

        def met(made: PruningPlan) -> bool:
            summary = made.summary
            return summary["reduction"] >= budget.get("reduction", 0) and summary["bytes_after"] <= budget.get(
                "max_size", 10**9
            )

        made = plan(evidence, **budget)
        assert met(made)
        for kept in made.kept.values():
            assert len(set(map(len, in_groups(kept)))) == 1
        assert plan(evidence, tau=made.settings["tau"]).kept == made.kept
        assert not met(plan(evidence, tau=float(np.nextafter(made.settings["tau"], np.inf))))


def test_counts_of_a_router_with_groups_are_multiples_of_their_number() -> None:
    evidence, other = grouped_evidence(), plan(random_evidence(experts=12), experts_per_layer=7)
    for criterion in ("moeits", "random"):
        for count in (3, 6, 9, 12):
            made = plan(evidence, experts_per_layer=count, criterion=criterion)
            assert [len(group) for kept in made.kept.values() for group in in_groups(kept)] == [count // 3] * 9
            assert plan(evidence, like=made, criterion=criterion).kept == made.kept
        with pytest.raises(BudgetOutOfReach, match=r"must stay of equal size. Ask for a multiple of 3, such as 6"):
            plan(evidence, experts_per_layer=7, criterion=criterion)
        with pytest.raises(BudgetOutOfReach, match=r"keeps 7 experts in layer 0, but .* Ask for a multiple of 3"):
            plan(evidence, like=other, criterion=criterion)


def test_every_expert_of_every_group_is_as_likely_to_be_kept_at_random() -> None:
    evidence = grouped_evidence(layers=1)
    kept = [plan(evidence, experts_per_layer=6, criterion="random", seed=seed).kept[0] for seed in range(400)]
    share = np.bincount(np.concatenate(kept), minlength=12) / 400
    # Five standard deviations of a share of 1/2 in 400 draws.
    assert np.all(np.abs(share - 0.5) < 5 * 0.025)


@pytest.mark.parametrize(
    ("top_k", "least_per_group", "min_experts", "floor"),
    [(2, 1, None, 3), (4, 1, None, 6), (4, 2, None, 6), (2, 2, None, 6), (4, 1, 1, 3), (4, 2, 1, 6), (4, 1, 7, 9)],
)
def test_the_floor_is_of_whole_groups_that_the_router_can_work_with(
    top_k: int, least_per_group: int, min_experts: int | None, floor: int
) -> None:
    evidence = grouped_evidence(top_k=top_k, least_per_group=least_per_group)
    made = plan(evidence, tau=-100, min_experts=min_experts)
    assert set(counts(made).values()) == {floor}
    with pytest.raises(BudgetOutOfReach, match=f"with at least {floor} experts in each of 3 layers"):
        plan(evidence, reduction=1, min_experts=min_experts)


def test_a_plan_by_hand_must_leave_groups_of_equal_and_sufficient_size() -> None:
    evidence = grouped_evidence(layers=1, least_per_group=2)
    check_groups({0: (0, 3, 4, 5, 8, 11)}, evidence.layers)
    with pytest.raises(PlanError, match=r"layer 0 chooses among 3 groups .* this plan keeps \[2, 1, 2\]"):
        check_groups({0: (0, 3, 4, 8, 11)}, evidence.layers)
    with pytest.raises(PlanError, match="layer 0 needs 2 experts in each of its 3 groups; this plan keeps 1"):
        check_groups({0: (0, 4, 8)}, evidence.layers)


def test_an_uneven_plan_is_evened_out_to_whole_groups() -> None:
    evidence = grouped_evidence(1)
    made = plan(evidence, tau=0.5)
    assert len(set(counts(made).values())) > 1
    evened = even_out(made, dict.fromkeys(made.kept, 12), groups=GROUPS)
    check_groups(evened.kept, evidence.layers)
    mean = sum(counts(made).values()) // 3
    assert set(counts(evened).values()) == {mean - mean % GROUPS}


def test_a_router_of_one_group_keeps_what_it_likes() -> None:
    check_groups({0: (0, 1, 2)}, random_evidence(layers=1).layers)


# ---------------------------------------------------------------------------------------------- numbers of the paper


def published(
    layers: int, experts: int, kept: int, *, expert: int, hidden: int, parameters: int
) -> tuple[Evidence, dict[int, tuple[int, ...]]]:
    """Evidence of a published model's sizes, and a plan that keeps so many of its experts."""
    other = parameters - layers * experts * (expert + hidden)
    evidence = toy_evidence(
        {i: np.zeros((experts, experts)) for i in range(layers)},
        expert_parameters=expert,
        router_row=hidden,
        other_parameters=other,
    )
    per_layer = [kept // layers + (i < kept % layers) for i in range(layers)]
    return evidence, {i: tuple(range(count)) for i, count in enumerate(per_layer)}


def test_qwen_at_the_papers_row_has_the_papers_numbers() -> None:
    evidence, kept = published(24, 60, 678, expert=8_650_752, hidden=2048, parameters=14_315_784_192)
    summary = evidence.inventory.summary({layer: len(experts) for layer, experts in kept.items()})
    assert (summary["experts_before"], summary["experts_kept"]) == (1440, 678)
    assert summary["parameters_before"] == 14_315_784_192
    assert summary["parameters_after"] == 7_722_350_592
    assert summary["bytes_after"] == 2 * 7_722_350_592
    assert round(100 * summary["reduction"], 2) == 52.92
    assert round(100 * summary["reduction_of_all"], 2) == 46.06


def test_a_tenth_removed_is_a_reduction_of_exactly_a_tenth() -> None:
    evidence, kept = published(24, 60, 1296, expert=100, hidden=10, parameters=1_000_000)
    assert evidence.inventory.summary({layer: len(experts) for layer, experts in kept.items()})["reduction"] == 0.1
    assert plan(random_evidence(layers=1, experts=10), reduction=0.1).summary["reduction"] == 0.1


def test_mixtral_at_the_papers_row_has_the_papers_numbers() -> None:
    evidence, kept = published(32, 8, 146, expert=176_160_768, hidden=4096, parameters=46_702_792_704)
    summary = evidence.inventory.summary({layer: len(experts) for layer, experts in kept.items()})
    assert (summary["experts_before"], summary["experts_kept"]) == (256, 146)
    assert summary["parameters_after"] == 27_324_657_664
    assert round(100 * summary["reduction"], 2) == 42.97


def test_a_thousand_values_of_tau_are_planned_from_one_order_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordering is the work; how long a thousand plans take is measured by `python -m benchmarks planning`."""
    ordered: list[int] = []
    eliminate = moeits_criterion.eliminate

    def counted(redundancy: np.ndarray) -> tuple[tuple[int, ...], tuple[float, ...]]:
        ordered.append(len(redundancy))
        return eliminate(redundancy)

    monkeypatch.setattr(moeits_criterion, "eliminate", counted)
    planner = Planner(random_evidence(layers=3, experts=8))
    plans = {tuple(planner.plan(tau=float(tau)).kept.items()) for tau in np.linspace(-1, 5, 1000)}
    assert ordered == [8, 8, 8]
    assert len(plans) > 3


# ---------------------------------------------------------------------------------------------- plan.json


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for number, arguments in enumerate(({"tau": 0.5}, {"experts_per_layer": 4, "criterion": "random"})):
        made = plan(random_evidence(), output=tmp_path / f"{number}.json", **arguments)
        read = PruningPlan.load(tmp_path / f"{number}.json")
        assert read == made
        assert read.to_json() == made.to_json()
        assert read.sha256 == made.sha256


def test_the_same_evidence_and_budget_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        plan(random_evidence(), reduction=0.5, output=tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_plan_json_has_the_fields_that_other_peoples_scripts_rely_on(tmp_path: Path) -> None:
    made = plan(random_evidence(), tau=0.5, output=tmp_path / "plan.json")
    facts = json.loads((tmp_path / "plan.json").read_text())
    assert list(facts) == [
        "format",
        "model_type",
        "source",
        "fingerprint",
        "criterion",
        "settings",
        "kept",
        "order",
        "summary",
        "layers",
    ]
    assert (facts["format"], facts["criterion"], facts["settings"]["tau"]) == (1, "moeits", 0.5)
    assert facts["settings"]["bins"] == "auto"
    assert facts["kept"]["0"] == list(made.kept[0])
    assert [len(facts["order"][layer]) for layer in "012"] == [6, 6, 6]
    assert {"experts_before", "experts_kept", "parameters_before", "parameters_after", "bytes_after"} <= set(
        facts["summary"]
    )
    assert {"reduction", "reduction_of_all", "floored_layers"} <= set(facts["summary"])
    # One row per layer: it can be read, edited and compared line by line.
    assert f'    "0": {json.dumps(list(made.kept[0]))},' in (tmp_path / "plan.json").read_text().splitlines()


def test_any_other_budget_follows_from_the_order_in_a_plan() -> None:
    evidence = random_evidence()
    made = plan(evidence, tau=1)
    for count in (2, 5, 8):
        other = plan(evidence, experts_per_layer=count)
        for layer, steps in made.order.items():
            gone = {expert for expert, _ in steps[: 8 - count]}
            assert other.kept[layer] == tuple(expert for expert in range(8) if expert not in gone)


def edited(tmp_path: Path, **changes: Any) -> Path:
    made = plan(random_evidence(), tau=0.5)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps({**made.facts(), **changes}))
    return path


def test_a_plan_may_be_edited_by_hand(tmp_path: Path) -> None:
    kept = {"0": [1, 2], "1": [0, 7], "2": [3, 4, 5]}
    read = PruningPlan.load(edited(tmp_path, kept=kept))
    assert read.kept == {0: (1, 2), 1: (0, 7), 2: (3, 4, 5)}
    without = json.loads(edited(tmp_path, kept=kept).read_text())
    del without["order"], without["summary"]
    (tmp_path / "bare.json").write_text(json.dumps(without))
    assert PruningPlan.load(tmp_path / "bare.json").kept == read.kept


@pytest.mark.parametrize("experts", [[], [2, 1], [1, 1]])
def test_a_kept_list_out_of_order_is_refused_with_its_layer(tmp_path: Path, experts: list[Any]) -> None:
    with pytest.raises(PlanError, match="kept experts of layer 1 must be different ids in ascending order"):
        PruningPlan.load(edited(tmp_path, kept={"0": [1, 2], "1": experts, "2": [0]}))


@pytest.mark.parametrize("experts", [[-1, 2], [0, 1.5], ["0", "1"], [True, 2], [10**400], 3])
def test_a_kept_list_of_no_experts_is_refused_with_its_place(tmp_path: Path, experts: Any) -> None:
    with pytest.raises(PlanError, match=r"is not a plan: .*\$\.kept"):
        PruningPlan.load(edited(tmp_path, kept={"0": [1, 2], "1": experts, "2": [0]}))


def test_an_edited_plan_that_keeps_experts_nobody_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"it keeps expert 99 of layer 1, which has 8: give ids from 0 to 7"):
        PruningPlan.load(edited(tmp_path, kept={"0": [1], "1": [0, 99], "2": [2]}))
    with pytest.raises(PlanError, match=r"do not have the same layers: \[2\]"):
        PruningPlan.load(edited(tmp_path, kept={"0": [1], "1": [0]}))


@pytest.mark.parametrize(
    "changes",
    [
        {"summary": {"reduction": 10**400}},
        {"order": {"0": [[1, 10**400]]}},
        {"settings": {"tau": 10**400}},
        {"source": "\ud800"},
        {"criterion": 5},
        {"layers": {"0": {"num_experts": 0}}},
    ],
    ids=str,
)
def test_numbers_and_texts_that_nothing_can_print_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"edited\.json"):
        PruningPlan.load(edited(tmp_path, **changes))


def test_a_plan_of_0_1_is_read_as_before(tmp_path: Path) -> None:
    path = edited(tmp_path)
    old = {key: value for key, value in json.loads(path.read_text()).items() if key != "layers"}
    path.write_text(json.dumps(old))
    read = PruningPlan.load(path)
    assert (read.inventory, read.experts_before()) == (None, EIGHT)


def test_the_levels_of_a_plan_have_six_digits_and_decide_nothing(tmp_path: Path) -> None:
    evidence = random_evidence()
    made = plan(evidence, tau=0.5, output=tmp_path / "plan.json")
    exact = Planner(evidence).orders[0]
    levels = [level for _, level in made.order[0]]
    assert levels == [float(f"{level:.6g}") for level in exact.levels[:6]]
    assert made.kept[0] == exact.kept_after(exact.steps_at(0.5))
    assert PruningPlan.load(tmp_path / "plan.json") == made


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "it has format 2, and this moeits reads format 1"),
        ({"kept": [1, 2]}, "is not a plan"),
        ({"kept": {"first": [1]}}, "is not a plan"),
        ({"kept": {"0": 5}}, "is not a plan"),
        ({"order": {"0": [3]}}, "is not a plan"),
        ({"settings": 5}, "is not a plan"),
    ],
)
def test_a_broken_plan_is_a_sentence_that_names_the_file(tmp_path: Path, changes: Any, sentence: str) -> None:
    with pytest.raises(PlanError, match=r"edited\.json") as raised:
        PruningPlan.load(edited(tmp_path, **changes))
    assert sentence in str(raised.value)


def test_what_is_no_json_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(PlanError, match=r"There is no plan .* Make one with: moeits plan EVIDENCE --output"):
        PruningPlan.load(path)
    for content in (b"{", b"\xff\xfe", b"", b"[]", b"3", b"null"):
        path.write_bytes(content)
        with pytest.raises(PlanError, match=r"plan\.json"):
            PruningPlan.load(path)


# ---------------------------------------------------------------------------------------------- evening out


EIGHT = {0: 8, 1: 8, 2: 8}


def test_a_plan_evened_out_follows_its_own_order_to_its_mean_count() -> None:
    evidence = random_evidence()
    made = plan(evidence, tau=0.4)
    evened = even_out(made, EIGHT)
    count = sum(counts(made).values()) // 3
    assert evened.kept == plan(evidence, experts_per_layer=count).kept
    assert evened.settings["layout"] == "uniform"
    assert sum(counts(evened).values()) <= sum(counts(made).values())


def test_an_even_plan_stays_as_it_is() -> None:
    made = plan(random_evidence(), experts_per_layer=5)
    assert even_out(made, EIGHT).kept == made.kept


def test_a_plan_edited_off_its_order_is_not_evened_out(tmp_path: Path) -> None:
    kept = {"0": [1, 2], "1": [0, 7], "2": [3, 4, 5]}
    with pytest.raises(PlanError, match=r"layer \d do not follow the plan's order .* --layout per-layer"):
        even_out(PruningPlan.load(edited(tmp_path, kept=kept)), EIGHT)
    with pytest.raises(PlanError, match="do not follow the plan's order"):
        even_out(PruningPlan.load(edited(tmp_path, order={})), EIGHT)


def test_evening_out_goes_below_no_floor_and_above_no_layers_size() -> None:
    rng = np.random.default_rng(0)
    evidence = toy_evidence({0: random_redundancy(rng, 8), 1: random_redundancy(rng, 4)}, top_k=2)
    made = plan(evidence, tau=100)
    with pytest.raises(PlanError, match="of 6 experts is more than the 4 that layer 1 has"):
        even_out(made, {0: 8, 1: 4})
    floored = plan(evidence, like=plan(evidence, tau=100), min_experts=4)
    floored_low = PruningPlan(**{**vars(floored), "kept": {0: (0, 1), 1: floored.kept[1]}})
    with pytest.raises(PlanError):
        even_out(floored_low, {0: 8, 1: 4})


def test_relabelled_layers_get_relabelled_plans() -> None:
    evidence = random_evidence(layers=1, experts=12)
    names = np.random.default_rng(1).permutation(12)
    relabelled = toy_evidence({0: evidence.redundancy[0][np.ix_(names, names)]}, top_k=2)
    for reduction in (0.25, 0.5, 0.75):
        kept, other = (plan(e, reduction=reduction).kept[0] for e in (evidence, relabelled))
        assert {int(names[expert]) for expert in other} == set(kept)
