"""A plan for one form of a model, carried out on another: a quantised version, or its experts stored another way."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import moeits
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import PlanError, UnscorableWeight
from tests.toys import fuse, make_toy, read_config


@pytest.fixture
def plan(toy: Path) -> PruningPlan:
    return moeits.plan(moeits.score(toy), tau=0.5)


def as_bytes(source: Path, folder: Path) -> Path:
    """The same checkpoint, its experts in a dtype that is moved but not computed with."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b'"BF16"', b'"XX16"'))
    return folder


def test_what_cannot_be_scored_is_pruned_by_its_parents_plan(tmp_path: Path, toy: Path, plan: PruningPlan) -> None:
    quantised = as_bytes(toy, tmp_path / "quantised")
    with pytest.raises(UnscorableWeight, match="--any-fingerprint"):
        moeits.score(quantised)
    with pytest.raises(PlanError, match=r"The plan was made for toy .* say so with --any-fingerprint"):
        moeits.prune(quantised, plan=plan, output=tmp_path / "out")
    done = moeits.prune(quantised, plan=plan, output=tmp_path / "out", any_fingerprint=True)
    assert done.kept == plan.kept
    moeits.prune(toy, plan=plan, output=tmp_path / "parent")
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(tmp_path / "parent")


def tensor_bytes(folder: Path) -> bytes:
    data = (folder / "model.safetensors").read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_a_fused_twin_is_pruned_by_the_same_plan(tmp_path: Path, toy: Path, plan: PruningPlan) -> None:
    fused = fuse(toy, tmp_path / "fused")
    moeits.prune(fused, plan=plan, output=tmp_path / "out", any_fingerprint=True)
    moeits.prune(fused, plan=moeits.plan(moeits.score(fused), tau=0.5), output=tmp_path / "own")
    own, other = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "out"))
    assert own.keys() == other.keys()
    assert all(own[name].tobytes() == other[name].tobytes() for name in own)


def test_the_recipe_beside_it_is_for_its_own_source_and_says_where_it_comes_from(
    tmp_path: Path, toy: Path, plan: PruningPlan
) -> None:
    fused = fuse(toy, tmp_path / "fused")
    moeits.prune(fused, plan=plan, output=tmp_path / "out", any_fingerprint=True)
    again = moeits.prune(fused, plan=tmp_path / "out" / "plan.json", output=tmp_path / "again")
    assert (again.source, again.settings["planned_for"]) == ("fused", "toy")
    assert read_config(tmp_path / "out")["moeits"]["source"] == "fused"
    assert "planned_for" not in moeits.prune(toy, plan=plan, output=tmp_path / "same", any_fingerprint=True).settings


def test_layers_counts_and_family_must_be_those_of_the_plan_all_the_same(tmp_path: Path, plan: PruningPlan) -> None:
    others = {
        "which layers have experts": make_toy(tmp_path / "longer", layers=4),
        "is for 6 experts in layer 0, which has 8": make_toy(tmp_path / "wider", experts=8),
        "is for a qwen2_moe model, the checkpoint is olmoe": make_toy(tmp_path / "other", "olmoe"),
    }
    for sentence, other in others.items():
        with pytest.raises(PlanError, match=sentence):
            moeits.prune(other, plan=plan, output=tmp_path / "out", any_fingerprint=True)
    assert not (tmp_path / "out").exists()


def test_a_plan_of_an_expert_too_many_is_refused_all_the_same(tmp_path: Path, toy: Path, plan: PruningPlan) -> None:
    facts = plan.facts()
    facts["kept"]["0"] = [0, 7]
    (tmp_path / "plan.json").write_text(json.dumps(facts))
    with pytest.raises(PlanError, match="keeps expert 7 of layer 0, which has 6"):
        moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out", any_fingerprint=True)
