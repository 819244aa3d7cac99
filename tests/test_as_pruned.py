"""A pruned checkpoint that was edited since is not refitted."""

import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import PlanError
from moeits.experts.layout import MoELayout
from moeits.progress import silent
from moeits.refitting.judgement import judged
from moeits.surgery import as_pruned
from moeits.surgery.as_pruned import check_as_pruned
from moeits.surgery.carried_out import carried_out
from moeits.surgery.settings import Writing
from tests.toys import fuse, make_toy
from tests.trial_toys import make_pruned_toy

SMALL = {"tokens": 2048, "held_out": 1024, "window": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pruned_toy(tmp_path_factory.mktemp("as-pruned"))


def edit(folder: Path, name: str) -> None:
    """Another last byte of a tensor."""
    info = Checkpoint.open(folder).tensors[name]
    with (folder / info.shard.name).open("r+b") as file:
        file.seek(info.offset + info.nbytes - 1)
        last = file.read(1)[0]
        file.seek(info.offset + info.nbytes - 1)
        file.write(bytes([last ^ 1]))


@pytest.mark.parametrize("verify", ["auto", "sampled"])
@pytest.mark.parametrize(
    "name", ["layers.1.mlp.experts.2.down_proj.weight", "layers.0.mlp.gate.weight", "embed_tokens.weight"]
)
def test_a_pruned_checkpoint_that_was_edited_since_is_noticed(
    place: Path, tmp_path: Path, name: str, verify: str
) -> None:
    copytree(place / "pruned", tmp_path / "pruned")
    edit(tmp_path / "pruned", f"model.{name}")
    said = rf"^model\.{name} of .*pruned is not what its plan.json leaves of its parent: .* Prune the parent again\.$"
    with pytest.raises(PlanError, match=said):
        moeits.refit(tmp_path / "pruned", parent=place / "toy", output=tmp_path / "out", verify=verify, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_what_a_refit_computed_is_not_an_edit_but_what_it_copied_is_if_it_changed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeits.stages.refit.judged", lambda *given: (judged(*given)[0], True))
    made = moeits.refit(place / "pruned", parent=place / "toy", output=tmp_path / "once", **SMALL)
    moeits.refit(tmp_path / "once", parent=place / "toy", output=tmp_path / "twice", **SMALL)
    assert made.tensors["computed"]
    edit(tmp_path / "twice", made.tensors["copied"][0])
    with pytest.raises(PlanError, match="was edited since"):
        moeits.refit(tmp_path / "twice", parent=place / "toy", output=tmp_path / "out", **SMALL)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("edited", ["none", "average"])
def test_everything_that_prune_writes_is_as_it_left_it(edited: str, fused: bool, tmp_path: Path) -> None:
    """Every fate: copied, taken, renamed, and computed by an edit."""
    parent = make_toy(tmp_path / "toy", "qwen2_moe")
    parent = fuse(parent, tmp_path / "fused") if fused else parent
    plan = moeits.plan(moeits.score(parent), tau=0.5, edit=edited)
    moeits.prune(parent, plan=plan, output=tmp_path / "pruned")
    there, whole = Checkpoint.open(tmp_path / "pruned"), Checkpoint.open(parent)
    carried = PruningPlan.load(tmp_path / "pruned" / "plan.json")
    for full in (True, False):
        check_as_pruned(there, whole, carried, full=full, progress=silent)
    name = next(name for name in there.tensors if "experts" in name)
    edit(tmp_path / "pruned", name)
    with pytest.raises(PlanError, match=re.escape(name)):
        check_as_pruned(Checkpoint.open(tmp_path / "pruned"), whole, carried, full=True, progress=silent)


def test_every_byte_is_compared_a_piece_at_a_time_until_one_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(as_pruned, "_PIECE", 1 << 12)
    whole = Checkpoint.open(fuse(make_toy(tmp_path / "toy", "mixtral", intermediate_size=512), tmp_path / "fused"))
    plan = moeits.plan(moeits.score(whole), experts_per_layer=2)
    moeits.prune(whole, plan=plan, output=tmp_path / "pruned")
    there = Checkpoint.open(tmp_path / "pruned").tensors
    made = max(carried_out(whole, MoELayout.of(whole), plan, Writing()).tensors, key=lambda tensor: tensor.nbytes)
    assert made.nbytes > 10 << 12, "the case is too small to show anything"
    reads: list[int] = []
    read = as_pruned.read_from
    monkeypatch.setattr(as_pruned, "read_from", lambda *asked: (reads.append(asked[1]), read(*asked))[1])
    tracemalloc.start()
    assert as_pruned._same(there[made.name], made.parts, full=True)
    assert tracemalloc.get_traced_memory()[1] < made.nbytes / 2
    tracemalloc.stop()
    assert len(reads) == made.nbytes >> 12
    reads.clear()
    other = replace(made.parts[0], offset=made.parts[0].offset + 4)
    assert not as_pruned._same(there[made.name], (other, *made.parts[1:]), full=True)
    assert len(reads) == 1
