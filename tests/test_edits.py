"""Kept experts that are made of several: decided in the plan, computed as they are written; all else as it was."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.sources import read_range
from moeits.checkpoint.writing import ByteRange, NewTensor
from moeits.choosing.pruning_plan import PruningPlan
from moeits.edits import PlannedEdit
from moeits.errors import NonFiniteWeight, PlanError, SettingError, UnscorableWeight
from moeits.evidence import Evidence
from moeits.experts.layout import MoELayout
from moeits.surgery.edited import edited_tensors
from moeits.surgery.fates import new_tensors
from moeits.surgery.unwritten import unwritten
from tests.packed import packed_copies
from tests.toys import fuse, make_toy, random_redundancy, read_tensors, toy_evidence, write_checkpoint

EXPERTS = 6
FORMS = ("qwen2_moe", "qwen2_moe fused", "gpt_oss", "ernie4_5_moe")


@cache
def source(form: str) -> tuple[Checkpoint, MoELayout, Mapping[str, np.ndarray]]:
    folder = Path(mkdtemp())
    toy = make_toy(folder / "toy", form.removesuffix(" fused"), dtype="float32", experts=EXPERTS)
    toy = fuse(toy, folder / "fused") if form.endswith("fused") else toy
    checkpoint = Checkpoint.open(toy)
    return checkpoint, MoELayout.of(checkpoint), read_tensors(toy)


def content(tensor: NewTensor) -> bytes:
    """What would be written."""
    found = b""
    for part in tensor.parts:
        if isinstance(part, ByteRange):
            data = read_range(part.shard, part.offset, part.length).tobytes()
        else:
            data = part if isinstance(part, bytes) else part()
        found += data
    return found


@st.composite
def plans(draw: st.DrawFn) -> tuple[dict[str, Any], PlannedEdit]:
    """Who stays in each of three layers, and what some of them are made of."""
    experts = st.sets(st.integers(0, EXPERTS - 1), min_size=1)
    kept = {layer: tuple(sorted(draw(experts))) for layer in range(3)}
    groups = {}
    for layer in draw(st.sets(st.integers(0, 2))):
        made = draw(st.sets(st.sampled_from(kept[layer])))
        members = {expert: sorted(draw(experts)) for expert in made}
        groups[layer] = {expert: tuple((each, 1 / len(of)) for each in of) for expert, of in members.items()}
    return kept, PlannedEdit(name="average", groups=groups)


@given(st.sampled_from(FORMS), plans())
def test_every_tensor_has_exactly_one_fate(form: str, plan: tuple[dict[int, tuple[int, ...]], PlannedEdit]) -> None:
    (checkpoint, moe, before), (kept, edit) = source(form), plan
    kept = {layer: kept[layer] for layer in moe.layers}
    edit = PlannedEdit(name="average", groups={i: of for i, of in edit.groups.items() if i in moe.layers})
    plain = {tensor.name: tensor for tensor in new_tensors(checkpoint, moe, kept)}
    edited = {t.name: t for t in new_tensors(checkpoint, moe, kept, edited_tensors(checkpoint, moe, kept, edit))}
    facts = [[(t.name, t.dtype, t.shape, t.nbytes) for t in made.values()] for made in (plain, edited)]
    assert facts[0] == facts[1]
    computed = set()
    for i, layer in moe.layers.items():
        for number, expert in enumerate(kept[i]):
            group = edit.groups.get(i, {}).get(expert, ((expert, 1.0),))
            places = (
                [(name, layer.experts[number][tensor], tensor) for tensor, name in layer.experts[expert].items()]
                if layer.experts
                else [(name, name, None) for name in layer.fused.values()]
            )
            for _, name, tensor in places:
                wanted = sum(
                    np.float32(share) * before[layer.experts[each][tensor]] if tensor else share * before[name][each]
                    for each, share in group
                )
                written = np.frombuffer(content(edited[name]), np.float32).reshape(edited[name].shape)
                assert np.allclose(written if tensor else written[number], wanted, rtol=1e-5, atol=1e-6), name
                computed |= {name} if expert in edit.groups.get(i, {}) else set()
    for name in plain.keys() - computed:
        assert content(plain[name]) == content(edited[name]), name


def test_removed_experts_go_where_they_are_most_redundant_by_how_often_they_are_chosen() -> None:
    redundancy = np.zeros((5, 5))
    for i, j, value in ((0, 1, 0.9), (0, 3, 0.2), (2, 3, 0.8), (2, 4, 0.7), (1, 4, 0.1), (3, 4, 0.75)):
        redundancy[i, j] = redundancy[j, i] = value
    evidence = toy_evidence({0: redundancy}, top_k=1)
    plan = moeits.plan(evidence, experts_per_layer=2, edit="average")
    equal = plan.edit.groups[0]
    assert {expert: {each for each, _ in group} for expert, group in equal.items()} == {
        kept: {
            kept,
            *(e for e in range(5) if e not in plan.kept[0] and redundancy[e, list(plan.kept[0])].argmax() == at),
        }
        for at, kept in enumerate(plan.kept[0])
    }
    assert all(len({share for _, share in group}) == 1 for group in equal.values())
    often = toy_evidence({0: redundancy}, top_k=1, signals={"frequency": {0: np.array([4.0, 1, 0, 0, 3])}})
    weighted = moeits.plan(often, experts_per_layer=2, edit="average").edit.groups[0]
    assert weighted.keys() == equal.keys()
    for expert, group in weighted.items():
        counts = {0: 4.0, 1: 1.0, 2: 0.0, 3: 0.0, 4: 3.0}
        total = sum(counts[each] for each, _ in group)
        assert dict(group) == {each: (counts[each] / total if total else 1 / len(group)) for each, _ in group}, expert


@pytest.mark.parametrize("form", ["qwen2_moe", "gpt_oss"])
def test_the_checkpoint_holds_the_averages_and_its_card_says_so(tmp_path: Path, form: str) -> None:
    toy = make_toy(tmp_path / "toy", form)
    plan = moeits.simplify(toy, experts_per_layer=3, edit="average", output=tmp_path / "out")
    moeits.prune(toy, plan=tmp_path / "out" / "plan.json", output=tmp_path / "again")
    moeits.simplify(toy, experts_per_layer=3, output=tmp_path / "plain")
    again, plain, written = (Checkpoint.open(tmp_path / name) for name in ("again", "plain", "out"))
    assert again.fingerprint == written.fingerprint != plain.fingerprint
    before, moe, after = Checkpoint.open(toy), MoELayout.of(Checkpoint.open(toy)), MoELayout.of(written)
    made = 0
    for layer, kept in plan.kept.items():
        for number, expert in enumerate(kept):
            group = plan.edit.groups[layer].get(expert, ((expert, 1.0),))
            for projection in moe.architecture.projection_names:
                parts = [moe.read(before, layer, e, projection).astype(np.float32) * np.float32(w) for e, w in group]
                rounded = np.sum(parts, axis=0, dtype=np.float32).astype(parts[0].dtype)
                ours = after.read(written, layer, number, projection)
                if len(group) == 1:
                    assert ours.tobytes() == moe.read(before, layer, expert, projection).tobytes()
                else:
                    assert np.allclose(ours.astype(np.float32), rounded, rtol=2**-8)
                    made += 1
    assert made
    said = {name: (tmp_path / name / "README.md").read_text() for name in ("out", "plain")}
    assert "weighted averages" in said["out"]
    assert "bit for bit; nothing was trained" in said["plain"]
    assert "bit for bit; nothing was trained" not in said["out"]


def test_a_plan_keeps_its_edit_and_a_plan_without_one_is_what_it_was(tmp_path: Path) -> None:
    evidence = toy_evidence({0: random_redundancy(np.random.default_rng(0), 6)}, top_k=2)
    plan, plain = (moeits.plan(evidence, experts_per_layer=3, edit=edit) for edit in ("average", "none"))
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert plan.to_json() == PruningPlan.load(tmp_path / "plan.json").to_json()
    assert "edit" not in plain.facts()
    assert (plan.kept, plan.order) == (plain.kept, plain.order)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "avarage"}, r"no edit 'avarage'. Did you mean 'average'"),
        ({"groups": {"7": {"1": [[1, 1.0]]}}}, "layer 7, of which `kept` says nothing"),
        ({"groups": {"0": {"5": [[5, 1.0]]}}}, "expert 5 of layer 0, which is not kept"),
        ({"groups": {"0": {"1": [[1, 0.5], [6, 0.5]]}}}, "takes expert 6 of layer 0, which has 6"),
        ({"groups": {"0": {"1": [[1, 0.5], [2, 0.4]]}}}, "of expert 1 in layer 0 in `edit` do not sum to 1"),
        ({"groups": {"0": {"1": [[1, -0.5], [2, 1.5]]}}}, r"edit.groups"),
        ({"groups": {"0": {"1": []}}}, "do not sum to 1"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_in_a_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    toy = make_toy(tmp_path / "toy", layers=1)
    moeits.plan(moeits.score(toy), experts_per_layer=3, output=tmp_path / "plan.json")
    text = json.loads((tmp_path / "plan.json").read_text())
    text["kept"]["0"], text["edit"] = [0, 1, 2], {"name": "average", "groups": {}} | change
    (tmp_path / "plan.json").write_text(json.dumps(text))
    with pytest.raises((PlanError, SettingError), match=sentence):
        moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_uniform_layout_of_other_experts_is_refused(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    plan = moeits.plan(moeits.score(toy), tau=0.5, edit="average")
    assert len(set(plan.counts.values())) > 1
    with pytest.raises(PlanError, match="keeps other experts than those that this plan makes of several"):
        moeits.prune(toy, plan=plan, layout="uniform", output=tmp_path / "out")


def test_what_an_edit_needs_is_asked_before_any_work(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    with pytest.raises(SettingError, match="--criterion random scores no weights"):
        moeits.simplify(toy, criterion="random", experts_per_layer=3, edit="average", output=tmp_path / "out")
    bare = Evidence(inventory=moeits.score(toy).inventory)
    with pytest.raises(SettingError, match="--edit average needs redundancy, which this evidence does not have"):
        moeits.plan(bare, criterion="random", experts_per_layer=3, edit="average")
    packed = packed_copies(make_toy(tmp_path / "wide", "qwen3_moe", moe_intermediate_size=32), tmp_path)["fp8"]
    with pytest.raises(UnscorableWeight, match=r"weight is quantized \(F8_E4M3\), and --edit average computes"):
        moeits.simplify(packed, experts_per_layer=3, edit="average", output=tmp_path / "out")


def test_numbers_that_an_edit_cannot_keep_finite_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", layers=1)
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="average")
    tensors = read_tensors(toy)
    name = f"model.layers.0.mlp.experts.{next(iter(plan.edit.groups[0]))}.up_proj.weight"
    tensors[name] = np.full_like(tensors[name], np.nan)
    broken = write_checkpoint(tmp_path / "broken", json.loads((toy / "config.json").read_text()), tensors)
    with pytest.raises(NonFiniteWeight, match=r"up_proj.weight would not be finite as --edit average makes it"):
        moeits.prune(broken, plan=plan, any_fingerprint=True, output=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_an_edited_plan_is_not_looked_at_before_it_is_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_toy(tmp_path / "toy"))
    plan = moeits.plan(moeits.score(checkpoint), experts_per_layer=3, edit="average")
    with pytest.raises(PlanError, match=r"makes experts of several .* Prune by it first"):
        unwritten(checkpoint, plan)
