"""One specification for every edit: whoever adds one to EDITS gets all of it applied."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moeits
from moeits.choosing.pruning_plan import PruningPlan
from moeits.edits import EDITS, Edit, edit_named
from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.signals.watched import INPUT_NORMS
from tests.toys import HIDDEN, WIDTH, make_toy, random_redundancy, toy_evidence

COUNTS = {0: 7, 2: 4, 3: 1}


def evidence(seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    known = toy_evidence({layer: random_redundancy(rng, count) for layer, count in COUNTS.items()})
    chosen = {layer: rng.integers(0, 4, count).astype(float) for layer, count in COUNTS.items()}
    return replace(known, signals={"frequency": chosen}) if seed % 2 else known


@pytest.fixture(params=EDITS, ids=lambda edit: edit.name)
def edit(request: pytest.FixtureRequest) -> Edit:
    return request.param


def test_names_are_unique_and_found_by_name() -> None:
    assert len({edit.name for edit in EDITS}) == len(EDITS)
    assert all(edit_named(edit.name) is edit for edit in EDITS)
    with pytest.raises(SettingError, match=r"Did you mean 'average'\? Known: .*none"):
        edit_named("averages")


@given(seed=st.integers(0, 100), data=st.data())
def test_groups_are_weighted_experts_and_every_one_is_of_a_kept_expert(seed: int, data: st.DataObject) -> None:
    known = evidence(seed)
    for edit in EDITS:
        for layer, count in COUNTS.items():
            kept = tuple(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
            groups = edit.groups(known, layer, kept)
            assert groups == edit.groups(known, layer, kept)
            assert set(groups) <= set(kept)
            for group in groups.values():
                members, weights = zip(*group, strict=True)
                assert len(set(members)) == len(members)
                assert set(members) <= set(range(count))
                assert all(0 <= weight <= 1 for weight in weights)
                assert np.isclose(sum(weights), 1, atol=1e-9)
            if len(kept) == count:
                assert not groups, "nobody was removed, so nobody is made of several"


def test_what_it_makes_has_the_shape_of_an_expert_and_nobody_else_is_changed(edit: Edit) -> None:
    weights = {expert: np.random.default_rng(expert).standard_normal((5, 3)).astype(np.float32) for expert in range(3)}
    before = {expert: weight.copy() for expert, weight in weights.items()}
    made = edit.make(1, ((1, 0.25), (0, 0.75)), weights.__getitem__)
    assert (made.shape, made.dtype) == ((5, 3), np.float32)
    assert np.isfinite(made).all()
    assert all(np.array_equal(weights[expert], before[expert]) for expert in weights)
    assert np.allclose(edit.make(2, ((2, 1.0),), weights.__getitem__), weights[2], rtol=1e-6)


def knowing(known: Evidence, edit: Edit) -> Evidence:
    """Evidence with what an edit needs that neither scores nor sizes tell."""
    widths = dict.fromkeys(INPUT_NORMS, HIDDEN) | dict.fromkeys((n for n in INPUT_NORMS if "neuron" in n), WIDTH)
    signals = {**known.signals}
    for need in {*edit.needs} - {"redundancy"}:
        width = [widths[need]] if need in widths else []
        signals[need] = {i: np.ones([facts.num_experts, *width]) for i, facts in known.layers.items()}
    return replace(known, signals=signals)


def test_a_plan_with_it_keeps_the_experts_of_a_plan_without(edit: Edit, tmp_path) -> None:
    plan, plain = (moeits.plan(knowing(evidence(1), edit), tau=0.0, edit=name) for name in (edit.name, "none"))
    assert (plan.kept, plan.order, plan.summary) == (plain.kept, plain.order, plain.summary)
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_the_card_of_what_it_makes_says_what_became_of_the_weights(edit: Edit, tmp_path) -> None:
    toy = make_toy(tmp_path / "toy")
    plan = moeits.plan(knowing(moeits.score(toy), edit), tau=0.0, edit=edit.name)
    moeits.prune(toy, plan=plan, output=tmp_path / "out")
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    untouched = "The weights that are left are those of the source, bit for bit; nothing was trained."
    assert (edit.name == "none") == (untouched in card)
    assert edit.weights in card
    assert edit.weights or edit.name == "none"
