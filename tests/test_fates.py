"""Computed tensors beside those that are moved."""

from pathlib import Path

import numpy as np
import pytest

from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.writing import new_checkpoint
from moeits.experts.layout import MoELayout
from moeits.surgery.fates import Compute, new_tensors
from tests.toys import make_toy, read_tensors


def test_a_computed_tensor_takes_the_place_of_the_source_and_nothing_else_changes(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", dtype="float32")
    checkpoint = Checkpoint.open(toy)
    moe, before = MoELayout.of(checkpoint), read_tensors(toy)
    name = moe.layers[1].experts[2]["down_proj.weight"]
    half = np.split(before[name] * 2, 2)
    fate = Compute(name, "F32", before[name].shape, tuple(part.tobytes for part in half))
    made = new_tensors(checkpoint, moe, {i: range(6) for i in moe.layers}, {name: fate})
    with new_checkpoint(tmp_path / "out", sources=[toy], nbytes=0) as writer:
        writer.write_json("config.json", dict(checkpoint.config))
        writer.write_tensors(made, max_shard_bytes=10**9)
    after = read_tensors(tmp_path / "out")
    assert after.keys() == before.keys()
    assert {each for each in before if before[each].tobytes() != after[each].tobytes()} == {name}
    assert np.array_equal(after[name], 2 * before[name])


def test_a_tensor_has_one_fate_also_when_it_is_computed(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_toy(tmp_path / "toy", dtype="float32"))
    moe = MoELayout.of(checkpoint)
    name = moe.layers[1].experts[5]["down_proj.weight"]
    fate = Compute(name, "F32", checkpoint.tensors[name].shape, ())
    with pytest.raises(AssertionError, match="computed and dropped"):
        new_tensors(checkpoint, moe, {i: range(4) for i in moe.layers}, {name: fate})
