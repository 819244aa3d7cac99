"""How removals are shared out among layers, and budgets that every criterion takes."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moeits.choosing.allocations import ALLOCATIONS, Allocation, allocation_named
from moeits.choosing.criteria import CRITERIA
from moeits.choosing.planner import Planner
from moeits.choosing.settings import Choice
from moeits.errors import BudgetOutOfReach, EvidenceError, SettingError
from moeits.evidence import Evidence, merged
from moeits.stages.plan import plan
from tests.toys import random_redundancy, toy_evidence


def made_up(*counts: int, top_k: int = 2) -> Evidence:
    rng = np.random.default_rng(0)
    scored = toy_evidence({layer: random_redundancy(rng, count) for layer, count in enumerate(counts)}, top_k=top_k)
    return replace(scored, signals={"reap": {layer: rng.random(count) for layer, count in enumerate(counts)}})


def criterion_for(allocation: Allocation) -> str:
    return "reap" if allocation.needs == "scores" else "moeits"


@pytest.fixture(params=ALLOCATIONS, ids=lambda allocation: allocation.name)
def allocation(request: pytest.FixtureRequest) -> Allocation:
    return request.param


def test_further_up_the_dial_no_layer_loses_more(allocation: Allocation) -> None:
    planner = Planner(made_up(9, 12, 6), Choice(criterion=criterion_for(allocation)))
    low, high = allocation.range(planner.orders, planner.most_steps)
    along = [planner.steps_at(at, allocation) for at in np.linspace(low, high, 50)]
    assert along[0] == planner.most_steps
    assert set(along[-1].values()) == {0}
    for lower, upper in pairwise(along):
        assert all(lower[layer] >= upper[layer] for layer in lower)


def test_every_allocation_meets_a_budget_and_no_more_than_needed(allocation: Allocation) -> None:
    for wanted in (0.0, 0.2, 0.5, 0.7):
        made = plan(
            made_up(9, 12, 6), reduction=wanted, allocation=allocation.name, criterion=criterion_for(allocation)
        )
        assert made.summary["reduction"] >= wanted
        assert made.settings.get("allocation", "threshold") == allocation.name
        assert min(made.counts.values()) >= 2


@pytest.mark.parametrize("criterion", [each.name for each in CRITERIA if not each.needs or "redundancy" in each.needs])
def test_every_criterion_takes_a_share_and_a_size(criterion: str) -> None:
    evidence = made_up(8, 8, 8)
    half = plan(evidence, reduction="50%", criterion=criterion)
    assert 0.5 <= half.summary["reduction"] < 0.6
    assert plan(evidence, max_size=half.summary["bytes_after"], criterion=criterion).counts == half.counts


def test_global_levels_take_the_highest_of_all_layers_first() -> None:
    evidence = made_up(8, 8)
    evidence = replace(evidence, redundancy={0: evidence.redundancy[0] * 0.01, 1: evidence.redundancy[1]})
    made = plan(evidence, reduction=0.3, allocation="global")
    assert made.counts == {0: 8, 1: 3}
    assert set(plan(evidence, reduction=0.3, allocation="uniform").counts.values()) == {5}


def test_moe_i2_takes_from_layers_by_the_inverse_of_their_importance() -> None:
    even = np.ones(24)
    scores = {layer: even * factor + np.arange(24) * 1e-6 for layer, factor in enumerate((1.0, 2.0, 4.0))}
    evidence = replace(made_up(24, 24, 24), signals={"drop-error": scores})
    made = plan(evidence, reduction=28 / 72, criterion="moe-i2")
    assert made.settings["allocation"] == "moe-i2"
    assert {layer: 24 - count for layer, count in made.counts.items()} == {0: 16, 1: 8, 2: 4}
    nothing = replace(evidence, signals={"drop-error": dict.fromkeys(scores, np.zeros(24))})
    assert set(plan(nothing, reduction=0.5, criterion="moe-i2").counts.values()) == {12}


def test_by_entropy_a_layer_with_few_favourites_keeps_fewer() -> None:
    steep, flat = np.array([80.0, 10.0, 5, 1, 1, 1, 1, 1]), np.arange(1.0, 9.0)
    evidence = replace(made_up(8, 8), signals={"frequency": {0: steep, 1: flat}})
    made = plan(evidence, reduction=0.4, criterion="frequency", allocation="entropy")
    assert made.counts[0] < made.counts[1]
    shares = [of / of.sum() for of in (steep, flat)]
    steep_entropy, flat_entropy = (float(-(of * np.log(of)).sum() / np.log(8)) for of in shares)
    # Counts of 8 are rounded up, so the share of one layer says the other's to within one expert.
    assert abs(made.counts[0] - made.counts[1] * steep_entropy / flat_entropy) <= 1
    alike = replace(evidence, signals={"frequency": {0: np.ones(8), 1: np.zeros(8)}})
    assert plan(alike, reduction=0.5, criterion="frequency", allocation="entropy").counts == {0: 4, 1: 4}


def literal_grape(evidence: Evidence, total: int, gamma: float) -> dict[int, int]:
    """GRAPE step by step, with MoEITS saying who of a layer goes: counts when so many experts are gone."""
    matrices = {layer: r.copy() for layer, r in evidence.redundancy.items()}
    orders = {layer: list(Planner(evidence, Choice(min_experts=1)).orders[layer].removed) for layer in matrices}

    def entropy() -> float:
        counts = np.array([evidence.layers[i].num_experts for i in matrices], float) - [gone[i] for i in matrices]
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    gone, frozen = dict.fromkeys(matrices, 0), set()
    at_first = entropy()
    for _ in range(total):
        able = [i for i in matrices if gone[i] < len(orders[i])]
        if all(i in frozen for i in able):
            frozen = set()
        layer = max((i for i in able if i not in frozen), key=lambda i: matrices[i].sum())
        expert = orders[layer][gone[layer]]
        matrices[layer][expert], matrices[layer][:, expert] = 0, 0
        gone[layer] += 1
        if entropy() < at_first * (1 - gamma):
            frozen.add(layer)
    return {i: evidence.layers[i].num_experts - gone[i] for i in matrices}


@pytest.mark.parametrize("scale", [1.0, 0.2, 1e-5])
def test_grape_is_what_it_says_literally_with_its_brake(scale: float) -> None:
    evidence = made_up(9, 12, 10, top_k=1)
    evidence = replace(evidence, redundancy={**evidence.redundancy, 1: evidence.redundancy[1] * scale})
    planner = Planner(evidence, Choice(min_experts=1))
    for total in range(28):
        at = 1 - total / 28
        assert 31 - sum(planner.steps_at(at, allocation_named("grape")).values()) == 31 - total
        wanted = literal_grape(evidence, total, 0.1)
        steps = planner.steps_at(at, allocation_named("grape"))
        assert {i: evidence.layers[i].num_experts - n for i, n in steps.items()} == wanted
    if scale == 1e-5:  # without the brake the other two would have to go first, to the last but one
        assert literal_grape(evidence, 17, 1.0) == {0: 1, 1: 12, 2: 1}
        assert literal_grape(evidence, 17, 0.1)[1] < 12


@pytest.mark.parametrize(
    ("allocation", "criterion", "sentence"),
    [
        (
            "grape",
            "reap",
            "--allocation grape goes by how redundant pairs are, which --criterion reap does not look at",
        ),
        ("entropy", "moeits", "--allocation entropy needs scores that add up"),
        ("moe-i2", "moeits", "--allocation moe-i2 needs scores that add up"),
    ],
)
def test_an_allocation_without_what_it_goes_by_is_refused(allocation: str, criterion: str, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        plan(made_up(8, 8), reduction=0.3, criterion=criterion, allocation=allocation)


def test_message_and_page_name_all_criteria_whose_scores_add_up() -> None:
    adding_up = {each.name for each in CRITERIA if getattr(each, "adds_up", False)}
    with pytest.raises(SettingError) as refused:
        plan(made_up(8, 8), reduction=0.3, criterion="moeits", allocation="coverage")
    assert set(re.findall(r"[a-z0-9-]+", str(refused.value).split("choose by")[1])) - {"or"} == adding_up
    page = (Path(__file__).parents[1] / "docs" / "criteria.md").read_text()
    described = page.split("- **`--allocation coverage`**")[1].split("\n- ")[0]
    assert set(re.findall(r"`([^`]+)`", described)) == adding_up


def test_coverage_takes_from_the_layer_where_few_experts_have_most_of_the_score() -> None:
    steep, flat = np.array([100.0, 50.0, 1, 1, 1, 1, 1, 1]), np.array([1.0, 2, 1, 2, 1, 2, 1, 2])
    evidence = replace(made_up(8, 8), signals={"reap": {0: steep, 1: flat}})
    made = plan(evidence, reduction=0.4, criterion="reap", allocation="coverage")
    assert made.counts == {0: 2, 1: 7}
    share = made.settings["coverage"]
    for layer, signal in ((0, steep), (1, flat)):
        kept = list(made.kept[layer])
        assert signal[kept].sum() >= share * signal.sum()
        assert made.counts[layer] == 2 or signal[kept].sum() - signal[kept].min() < share * signal.sum()
    none = replace(evidence, signals={"reap": {0: np.zeros(8), 1: np.zeros(8)}})
    assert plan(none, reduction=0.5, criterion="reap", allocation="coverage").counts == {0: 4, 1: 4}
    with pytest.raises(SettingError, match="those of --criterion moeits do not: choose by reap"):
        plan(evidence, reduction=0.5, allocation="coverage")


def test_random_says_why_it_takes_no_tau_and_takes_the_rest() -> None:
    evidence = made_up(8, 8)
    with pytest.raises(SettingError, match=r"--tau is measured by scores, and --criterion random has none: give --red"):
        plan(evidence, tau=1.0, criterion="random")
    with pytest.raises(SettingError, match=r"--allocation global is measured by scores"):
        plan(evidence, reduction=0.5, criterion="random", allocation="global")
    assert plan(evidence, reduction=0.5, criterion="random").counts == {0: 4, 1: 4}


def test_counts_are_multiples_of_what_is_asked_for(allocation: Allocation) -> None:
    criterion = criterion_for(allocation)
    made = plan(made_up(12, 16, 8), reduction=0.4, allocation=allocation.name, criterion=criterion, multiple_of=4)
    assert made.summary["reduction"] >= 0.4
    assert all(count % 4 == 0 for count in made.counts.values())
    with pytest.raises(BudgetOutOfReach, match=r"which is not a multiple of 4"):
        plan(made_up(12), experts_per_layer=6, multiple_of=4)


def test_what_does_not_go_together_is_said() -> None:
    evidence = made_up(8, 8)
    with pytest.raises(SettingError, match="the counts are given already"):
        plan(evidence, experts_per_layer=4, allocation="uniform")
    with pytest.raises(SettingError, match="--tau is the dial of --allocation threshold, not of uniform"):
        plan(evidence, tau=1.0, allocation="uniform")
    with pytest.raises(SettingError, match="Did you mean 'uniform'"):
        plan(evidence, reduction=0.5, choice=Choice(allocation="uniforn"))
    assert allocation_named("threshold").dial == "tau"


def test_evidence_of_one_checkpoint_is_taken_together() -> None:
    scored = made_up(8, 8)
    beside = Evidence(inventory=scored.inventory, signals={"weight-norm": {0: np.ones(8), 1: np.ones(8)}})
    both = merged([beside, scored])
    assert both.redundancy is scored.redundancy
    assert both.signals == scored.signals | beside.signals
    assert plan([beside, scored], tau=0.5) == plan(scored, tau=0.5)
    other = replace(beside, inventory=replace(beside.inventory, fingerprint="1" * 64))
    with pytest.raises(EvidenceError, match="of two checkpoints"):
        merged([scored, other])
    with pytest.raises(EvidenceError, match="Two of the files hold redundancies"):
        merged([scored, made_up(8, 8)])
