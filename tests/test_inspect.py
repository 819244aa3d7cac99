"""What is said of a checkpoint from its headers alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import BudgetOutOfReach, SettingError
from tests.toys import fuse, make_toy, read_tensors, reshard


def test_sizes_are_those_that_stock_safetensors_counts(tmp_path: Path, toy: Path) -> None:
    found, tensors = moeits.inspect(toy), read_tensors(toy)
    assert found.parameters == sum(value.size for value in tensors.values())
    assert found.nbytes == sum(value.nbytes for value in tensors.values())
    assert found.routed_parameters == sum(value.size for name, value in tensors.items() if ".experts." in name)
    sharded = moeits.inspect(reshard(toy, tmp_path / "shards", shards=3))
    assert replace(sharded, shards=1, source="toy") == found


def test_no_number_of_a_tensor_is_read(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(np, "fromfile", never)
    monkeypatch.setattr(Checkpoint, "fingerprint", property(never))
    assert moeits.inspect(toy, reduction=0.5).layers[0].experts == 6


def test_it_tells_how_experts_are_stored(tmp_path: Path, toy: Path) -> None:
    assert moeits.inspect(toy).storage == "per-expert"
    assert moeits.inspect(fuse(toy, tmp_path / "fused")).storage == "fused"


def test_a_pruned_checkpoint_shows_each_layers_own_count_and_top_k(tmp_path: Path, toy: Path) -> None:
    plan = moeits.simplify(toy, tau=-1.0, min_experts=1, output=tmp_path / "out")
    found = moeits.inspect(tmp_path / "out")
    assert [row.experts for row in found.layers] == [len(kept) for kept in plan.kept.values()]
    assert [row.top_k for row in found.layers] == [min(2, len(kept)) for kept in plan.kept.values()]
    assert found.nbytes == plan.summary["bytes_after"]
    assert found.parameters == plan.summary["parameters_after"]


def test_a_plan_shows_what_it_leaves(tmp_path: Path, toy: Path) -> None:
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "out")
    found = moeits.inspect(tmp_path / "out" / "plan.json")
    assert found.kind == "plan"
    assert [(row.experts, row.experts_before) for row in found.layers] == [
        (len(kept), 6) for kept in plan.kept.values()
    ]
    assert found.nbytes == moeits.inspect(tmp_path / "out").nbytes


@pytest.mark.parametrize("model_type", ["mixtral", "deepseek_v2"])
@pytest.mark.parametrize("reduction", [0.0, 0.2, 0.5])
def test_what_a_budget_would_leave_is_what_it_leaves(tmp_path: Path, model_type: str, reduction: float) -> None:
    toy = make_toy(tmp_path / "toy", model_type)
    promised = moeits.inspect(toy, reduction=reduction)
    kept = moeits.simplify(toy, reduction=reduction, force=True, output=tmp_path / "out").summary
    assert (promised.budget_experts, promised.budget_bytes) == (kept["experts_kept"], kept["bytes_after"])
    size = promised.budget_bytes
    assert size is not None
    by_size = moeits.inspect(toy, max_size=size)
    assert by_size.budget_experts == promised.budget_experts
    assert by_size.budget_bytes is not None
    assert by_size.budget_bytes <= size


def test_of_a_pruned_checkpoint_it_is_said_what_its_layers_had(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, reduction=0.5, output=tmp_path / "out")
    assert [row.experts_before for row in moeits.inspect(tmp_path / "out").layers] == [6, 6, 6]
    plan = (tmp_path / "out" / "plan.json").read_bytes()
    (toy / "plan.json").write_bytes(plan)
    assert [row.experts_before for row in moeits.inspect(toy).layers] == [None] * 3, "a plan of other counts"
    (tmp_path / "out" / "plan.json").write_bytes(plan[:-9])
    assert [row.experts_before for row in moeits.inspect(tmp_path / "out").layers] == [None] * 3


@pytest.mark.parametrize("reduction", [0.1, 0.4, 0.6])
def test_what_a_budget_would_leave_of_groups_is_what_it_leaves(tmp_path: Path, reduction: float) -> None:
    limited = {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2}
    toy = make_toy(tmp_path / "toy", "deepseek_v2", experts=12, layers=2, **limited)
    promised = moeits.inspect(toy, reduction=reduction)
    kept = moeits.simplify(toy, reduction=reduction, output=tmp_path / "out").summary
    assert (promised.budget_experts, promised.budget_bytes) == (kept["experts_kept"], kept["bytes_after"])


def test_a_budget_out_of_reach_says_what_is_within(toy: Path) -> None:
    with pytest.raises(BudgetOutOfReach, match="at least 6 of 18 remain"):
        moeits.inspect(toy, reduction=0.9)
    with pytest.raises(BudgetOutOfReach, match="at least 6 of 18 remain"):
        moeits.inspect(toy, max_size=1)


@pytest.mark.parametrize(
    "budget", [{"reduction": 1.5}, {"reduction": float("nan")}, {"reduction": 0.5, "max_size": 1}, {"max_size": "?"}]
)
def test_a_budget_that_makes_no_sense_is_a_sentence(toy: Path, budget: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        moeits.inspect(toy, **budget)


def edited(tmp_path: Path, **changes: Any) -> Path:
    """A plan for a toy of three layers of six, changed by hand."""
    facts = moeits.plan(moeits.score(make_toy(tmp_path / "toy")), experts_per_layer=4).facts()
    (tmp_path / "edited.json").write_text(json.dumps({**facts, **changes}))
    return tmp_path / "edited.json"


def test_an_edited_plan_shows_what_it_keeps_now_and_the_sizes_of_that(tmp_path: Path) -> None:
    path = edited(tmp_path, kept={"0": [0, 1], "1": [0, 1, 2], "2": [5]})
    found = moeits.inspect(path)
    moeits.prune(tmp_path / "toy", plan=path, output=tmp_path / "out")
    written = moeits.inspect(tmp_path / "out")
    assert [(row.experts_before, row.experts, row.top_k) for row in found.layers] == [(6, 2, 2), (6, 3, 2), (6, 1, 1)]
    assert [(row.experts, row.top_k) for row in written.layers] == [(2, 2), (3, 2), (1, 1)]
    assert (found.parameters, found.nbytes) == (written.parameters, written.nbytes)


def test_an_edited_plan_of_0_1_shows_no_number_of_before(tmp_path: Path) -> None:
    found = moeits.inspect(edited(tmp_path, layers={}, kept={"0": [0, 1], "1": [0, 1, 2], "2": [5]}))
    assert [row.experts for row in found.layers] == [2, 3, 1]
    assert (found.parameters, found.nbytes) == (None, None)
    without = moeits.inspect(edited(tmp_path / "2", summary={}, layers={}))
    assert [row.experts_before for row in without.layers] == [None, None, None]
    assert (without.parameters, without.nbytes) == (None, None)


def test_an_edited_plan_of_equal_counts_still_knows_its_sizes(tmp_path: Path) -> None:
    path = edited(tmp_path, kept={"0": [0, 1, 2, 3], "1": [0, 1, 2, 3], "2": [2, 3, 4, 5]})
    moeits.prune(tmp_path / "toy", plan=path, output=tmp_path / "out")
    found, written = moeits.inspect(path), moeits.inspect(tmp_path / "out")
    assert (found.parameters, found.nbytes) == (written.parameters, written.nbytes)


def test_layers_at_their_floor_from_the_start_show_how_many_experts_they_have(tmp_path: Path, toy: Path) -> None:
    plan = moeits.simplify(toy, tau=0.5, min_experts=6, force=True, output=tmp_path / "out")
    assert plan.experts_before() == {0: 6, 1: 6, 2: 6}
    found = moeits.inspect(tmp_path / "out" / "plan.json")
    assert [row.experts_before for row in found.layers] == [6, 6, 6]


def test_a_plan_takes_no_budget(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out")
    with pytest.raises(SettingError, match="A plan has its budget already"):
        moeits.inspect(tmp_path / "out" / "plan.json", reduction=0.5)
