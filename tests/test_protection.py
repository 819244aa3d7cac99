"""Experts that stay whatever the criterion says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeits.choosing.allocations import ALLOCATIONS
from moeits.choosing.criteria import CRITERIA
from moeits.choosing.protection import super_experts
from moeits.errors import BudgetOutOfReach, EvidenceError, SettingError
from moeits.evidence import Evidence
from moeits.stages.plan import plan
from moeits.stages.simplify import simplify
from tests.test_contract_criteria import calibrated
from tests.toys import make_toy, random_redundancy, toy_evidence


@pytest.fixture
def evidence() -> Evidence:
    rng = np.random.default_rng(0)
    return calibrated(toy_evidence({layer: random_redundancy(rng, 12) for layer in range(8)}, top_k=2), rng)


def written(folder: Path, experts: object) -> Path:
    path = folder / "protect.json"
    path.write_text(json.dumps(experts))
    return path


# These choose a set for each count, and refuse to protect anybody (tests/test_contract_criteria.py).
SETS = {"stun", "mop", "c-gnn", "moe-i2-genetic"}


@pytest.mark.parametrize("criterion", [each.name for each in CRITERIA if each.name not in SETS])
def test_protected_experts_stay_at_every_count(criterion: str, evidence: Evidence, tmp_path: Path) -> None:
    protect = written(tmp_path, {"0": [11, 3, 5], "4": [0]})
    for count in range(3, 13):
        made = plan(evidence, criterion=criterion, experts_per_layer=count, protect=protect)
        assert set(made.counts.values()) == {count}
        assert {3, 5, 11} <= set(made.kept[0])
        assert 0 in made.kept[4]
        free = plan(evidence, criterion=criterion, experts_per_layer=count)
        assert made.kept[1] == free.kept[1]
    assert made.settings["protected"] == {"0": [3, 5, 11], "4": [0]}
    with pytest.raises(BudgetOutOfReach, match=r"keeps at least 3.*or protect fewer experts"):
        plan(evidence, criterion=criterion, experts_per_layer=2, protect=protect)


@pytest.mark.parametrize("allocation", [each.name for each in ALLOCATIONS])
def test_budgets_are_met_around_them(allocation: str, evidence: Evidence, tmp_path: Path) -> None:
    protect = written(tmp_path, {"2": list(range(8))})
    criterion = "moeits" if allocation == "grape" else "ean-sum"  # which goes by pairs
    made = plan(evidence, criterion=criterion, reduction=0.5, allocation=allocation, protect=protect)
    assert made.summary["reduction"] >= 0.5
    assert set(range(8)) <= set(made.kept[2])


def test_where_groups_limit_the_router_every_group_keeps_as_many_as_one_has_protected(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grouped = toy_evidence({0: random_redundancy(rng, 12)}, top_k=2)
    facts = replace(grouped.inventory.layers[0], groups=3)
    grouped = replace(grouped, inventory=replace(grouped.inventory, layers={0: facts}))
    with pytest.raises(BudgetOutOfReach):
        plan(grouped, reduction=0.6, protect=written(tmp_path, {"0": [4, 6]}))
    made = plan(grouped, reduction=0.5, protect=written(tmp_path, {"0": [4, 6]}))
    assert made.counts == {0: 6}
    assert {4, 6} <= set(made.kept[0])
    assert [sum(e // 4 == group for e in made.kept[0]) for group in range(3)] == [2, 2, 2]


def outlying(evidence: Evidence) -> Evidence:
    rng = np.random.default_rng(1)
    largest = {layer: rng.random(12) + 1 for layer in evidence.layers}
    largest[1][7], largest[7][2] = 500.0, 900.0
    return replace(evidence, signals={**evidence.signals, "largest-activation": largest})


def test_super_experts_stay_by_default_where_the_criterion_watches_tokens(evidence: Evidence) -> None:
    known = outlying(evidence)
    assert super_experts(known) == {1: {7}}  # the last quarter of the layers has large outputs without any harm
    reap = known.signals["reap"][1].copy()
    reap[7] = -1.0
    known = replace(known, signals={**known.signals, "reap": {**known.signals["reap"], 1: reap}})
    made = plan(known, criterion="reap", experts_per_layer=2)
    assert 7 in made.kept[1]
    assert made.settings["super_experts"] == {"1": [7]}
    without = plan(known, criterion="reap", experts_per_layer=2, super_experts=False)
    assert 7 not in without.kept[1]
    assert "super_experts" not in without.settings
    assert "super_experts" not in plan(known, experts_per_layer=2).settings
    assert 7 in plan(known, experts_per_layer=2, super_experts=True).kept[1]


def test_a_model_without_outliers_has_no_super_experts(evidence: Evidence) -> None:
    rng = np.random.default_rng(1)
    even = {layer: rng.random(12) + 1 for layer in evidence.layers}
    assert super_experts(replace(evidence, signals={"largest-activation": even})) == {}
    with pytest.raises(EvidenceError, match="moeits calibrate MODEL"):
        plan(evidence, experts_per_layer=4, super_experts=True)


def test_what_cannot_be_protected_is_said(evidence: Evidence, tmp_path: Path) -> None:
    def refused(match: str, experts: object) -> None:
        with pytest.raises(SettingError, match=match):
            plan(evidence, experts_per_layer=4, protect=written(tmp_path, experts))

    refused("protects experts of layer 9, which has none", {"9": [1]})
    refused("protects expert 12 of layer 3, which has 12: give ids from 0 to 11", {"3": [1, 12]})
    refused("is not a list of experts", [1, 2])
    refused("is not a list of experts", {"0": [-1]})
    with pytest.raises(SettingError, match=r"There is no .*missing\.json"):
        plan(evidence, experts_per_layer=4, protect=tmp_path / "missing.json")


def test_simplify_says_what_protection_forbids_before_it_scores(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", "mixtral", experts=6)
    protect = written(tmp_path, {"0": [0, 1, 2, 3]})

    def never(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        raise AssertionError

    given = {"output": tmp_path / "out", "experts_per_layer": 3, "progress": never}
    with pytest.raises(BudgetOutOfReach, match="keeps at least 4"):
        simplify(tmp_path / "toy", protect=protect, **given)
    with pytest.raises(SettingError, match="--super-experts needs a criterion that watches tokens"):
        simplify(tmp_path / "toy", super_experts=True, **given)
    made = simplify(tmp_path / "toy", output=tmp_path / "out", experts_per_layer=4, protect=protect)
    assert made.kept[0] == (0, 1, 2, 3)
    assert "protected" in (tmp_path / "out" / "README.md").read_text()
