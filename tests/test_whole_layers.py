"""Layers in which a table of tokens chooses the experts: kept whole, and said."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import moeits
from moeits.command_line.app import application
from moeits.errors import CheckpointError, SettingError
from tests.toys import make_toy, read_config, read_tensors, write_checkpoint

HASHED = "model.layers.0.ffn."


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "toy", "deepseek_v4")


def test_they_are_in_no_plan_and_every_byte_of_them_stays(toy: Path, tmp_path: Path) -> None:
    plan = moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    assert plan.counts == {1: 4, 2: 4}
    before, after = read_tensors(toy), read_tensors(tmp_path / "out")
    inside = {name for name in before if name.startswith(HASHED)}
    assert f"{HASHED}gate.tid2eid" in inside
    assert inside == {name for name in after if name.startswith(HASHED)}
    assert all(after[name].tobytes() == before[name].tobytes() for name in inside)
    config = read_config(tmp_path / "out")
    assert (config["n_routed_experts"], config["num_experts_per_layer"]) == (6, [6, 4, 4])
    assert {*config["per_layer_config"]} == {"1", "2"}


def test_plan_card_and_inspect_say_so(toy: Path, tmp_path: Path) -> None:
    asked = ["simplify", str(toy), "--experts-per-layer", "4", "--output", str(tmp_path / "out")]
    said = CliRunner().invoke(application(), asked)
    assert "note: a table of tokens chooses the experts of layers 0, so all of them stay." in said.stdout
    assert "Kept whole: layers 0, with all experts. A table of tokens" in (tmp_path / "out/README.md").read_text()
    shown = CliRunner().invoke(application(), ["inspect", str(tmp_path / "out")])
    assert "layers 0 keep all experts: a table of tokens chooses them there" in shown.stdout
    assert moeits.inspect(tmp_path / "out").whole_layers == moeits.inspect(toy).whole_layers == (0,)
    assert moeits.inspect(make_toy(tmp_path / "other")).whole_layers == ()


def test_one_number_of_experts_for_all_layers_is_refused_before_any_work(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"a table of tokens chooses them, all stay \(layers 0\)\. Use --layout per-la"
    ):
        moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out", layout="uniform")
    assert not (tmp_path / "out").exists()


def test_what_was_pruned_is_pruned_again(toy: Path, tmp_path: Path) -> None:
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    again = moeits.simplify(tmp_path / "out", experts_per_layer=3, output=tmp_path / "again")
    assert again.counts == {1: 3, 2: 3}
    assert read_config(tmp_path / "again")["num_experts_per_layer"] == [6, 3, 3]


def test_the_table_decides_and_not_the_config_alone(toy: Path, tmp_path: Path) -> None:
    """A layer that chooses by its router, but has none by config.json, is not passed over."""
    tensors = {name: value for name, value in read_tensors(toy).items() if not name.endswith("tid2eid")}
    wrong = write_checkpoint(tmp_path / "wrong", read_config(toy), tensors)
    with pytest.raises(CheckpointError, match="Layer 0 has a router, but no experts by config"):
        moeits.score(wrong)
    table = {"model.layers.1.ffn.gate.tid2eid": np.zeros((64, 2), np.int64)}
    wrong = write_checkpoint(tmp_path / "other", read_config(toy), read_tensors(toy) | table)
    with pytest.raises(CheckpointError, match="tid2eid is none of the tensors that a deepseek_v4 MoE block has"):
        moeits.score(wrong)


def test_the_first_layers_are_told_by_their_number_too(toy: Path, tmp_path: Path) -> None:
    """As files on the hub have it."""
    config = {key: value for key, value in read_config(toy).items() if key != "mlp_layer_types"}
    hub = write_checkpoint(tmp_path / "hub", config | {"num_hash_layers": 1}, read_tensors(toy))
    assert moeits.inspect(hub).whole_layers == (0,)
