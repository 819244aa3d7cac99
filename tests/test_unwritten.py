"""What prune would write can be read, and run, before it is written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import PlanError
from moeits.experts.layout import MoELayout
from moeits.surgery.unwritten import unwritten
from tests.test_layered import layer_by_layer_of
from tests.toys import fuse, make_toy

FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss")


@pytest.mark.parametrize("fused", [False, True], ids=["per expert", "fused"])
@pytest.mark.parametrize("uneven", [False, True], ids=["equal counts", "unequal counts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_has_the_tensors_and_the_config_of_what_is_written(
    family: str, uneven: bool, fused: bool, tmp_path: Path
) -> None:
    folder = make_toy(tmp_path / "toy", family, experts=8)
    if fused:
        if family == "gpt_oss":
            pytest.skip("its toy is fused already")
        folder = fuse(folder, tmp_path / "fused")
    source = Checkpoint.open(folder)
    plan = moeits.plan(moeits.score(folder), experts_per_layer=6)
    if uneven:
        last = max(plan.kept)
        plan = replace(plan, kept={**plan.kept, last: (0, 2, 5, 7)})
    moeits.prune(folder, plan=plan, output=tmp_path / "pruned")
    there, nowhere = Checkpoint.open(tmp_path / "pruned"), unwritten(source, plan)
    assert nowhere.config == there.config
    assert nowhere.coverage(full=True) == source.coverage(full=True), "its bytes are its source's"
    assert nowhere.tensors.keys() == there.tensors.keys()
    for name, info in there.tensors.items():
        assert (info.dtype, info.shape, info.nbytes) == tuple(
            getattr(nowhere.tensors[name], fact) for fact in ("dtype", "shape", "nbytes")
        )
        assert nowhere.read(name).tobytes() == there.read(name).tobytes()
    for checkpoint in (there, nowhere):
        assert MoELayout.of(checkpoint).layers.keys() == MoELayout.of(source).layers.keys()
    np.testing.assert_array_equal(layer_by_layer_of(nowhere), layer_by_layer_of(there))


def test_a_part_of_a_tensor_is_read_as_that_part(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", "qwen2_moe", experts=8)
    source = Checkpoint.open(fuse(tmp_path / "toy", tmp_path / "fused"))
    nowhere = unwritten(source, moeits.plan(moeits.score(source.folder), experts_per_layer=5))
    for name, info in nowhere.tensors.items():
        whole = nowhere.read(name)
        parts = (
            [()]
            if len(info.shape) < 2 or info.shape[0] < 3
            else [(1,), (slice(1, 3),), (info.shape[0] - 1, slice(0, 2))]
        )
        for where in parts:
            np.testing.assert_array_equal(nowhere.read(name, where), whole[where])


def test_another_plan_is_another_checkpoint(toy: Path, tmp_path: Path) -> None:
    source, evidence = Checkpoint.open(toy), moeits.score(toy)
    plans = [moeits.plan(evidence, criterion="random", seed=seed, experts_per_layer=4) for seed in (0, 0, 1)]
    one, again, other = (unwritten(source, plan).fingerprint for plan in plans)
    assert one == again
    assert other not in (one, source.fingerprint)
    with pytest.raises(PlanError, match="was made for"):
        unwritten(Checkpoint.open(make_toy(tmp_path / "other", seed=5)), plans[0])
