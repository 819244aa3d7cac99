"""Names become structure: which tensors are whose. What does not fit is in test_bad_input.py."""

from pathlib import Path

import numpy as np
import pytest

from moeits.checkpoint import Checkpoint
from moeits.layout import MoELayout, per_layer_config
from tests.toys import fuse, make_toy, read_config, read_tensors, write_checkpoint


def layout_of(folder: Path) -> tuple[Checkpoint, MoELayout]:
    checkpoint = Checkpoint.open(folder)
    return checkpoint, MoELayout.of(checkpoint)


def test_only_layers_that_the_config_calls_moe_are_read(tmp_path: Path) -> None:
    assert [*layout_of(make_toy(tmp_path / "a", layers=4, mlp_only_layers=[1]))[1].layers] == [0, 2, 3]
    assert [*layout_of(make_toy(tmp_path / "b", layers=4, decoder_sparse_step=2))[1].layers] == [1, 3]
    assert [*layout_of(make_toy(tmp_path / "c", "deepseek_v2", layers=4, first_k_dense_replace=2))[1].layers] == [2, 3]


def test_layers_of_both_forms_may_stand_in_one_checkpoint(tmp_path: Path, toy: Path) -> None:
    one, fused = read_tensors(toy), read_tensors(fuse(toy, tmp_path / "fused"))
    mixed = {name: value for name, value in one.items() if "layers.1." not in name}
    mixed |= {name: value for name, value in fused.items() if "layers.1." in name}
    checkpoint, layout = layout_of(write_checkpoint(tmp_path / "mixed", read_config(toy), mixed))
    assert [bool(moe.experts) for moe in layout.layers.values()] == [True, False, True]
    assert layout.layers[0].sizes == layout.layers[1].sizes
    for layer in range(3):
        for projection in ("gate", "up", "down"):
            name = f"model.layers.{layer}.mlp.experts.4.{projection}_proj.weight"
            assert np.array_equal(layout.read(checkpoint, layer, 4, projection), one[name])


def test_a_layers_own_settings_win(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", per_layer_config={"1": {"num_experts_per_tok": 1}})
    assert [moe.top_k for moe in layout_of(toy)[1].layers.values()] == [2, 1, 2]


@pytest.mark.parametrize("key", ["per_layer_config", "moeits"])
def test_settings_of_layers_are_found_under_both_keys(key: str) -> None:
    settings = {"3": {"num_experts": 5}}
    config = {key: settings if key == "per_layer_config" else {"per_layer_config": settings}}
    assert per_layer_config(config) == {3: {"num_experts": 5}}
    assert per_layer_config({}) == {}
    assert per_layer_config({"moeits": None, "per_layer_config": None}) == {}


def test_sizes_count_the_router_row_apart(toy: Path) -> None:
    _, layout = layout_of(toy)
    sizes = layout.layers[0].sizes
    assert sizes.parameters == 3 * 12 * 32
    assert sizes.nbytes == 2 * sizes.parameters
    assert (sizes.router_parameters, sizes.router_nbytes) == (32, 64)


def test_a_wrapper_may_put_a_prefix_before_layers_of_other_towers(tmp_path: Path, toy: Path) -> None:
    tensors = read_tensors(toy) | {"vision.layers.0.mlp.fc.weight": np.zeros((2, 2), np.float32)}
    _, layout = layout_of(write_checkpoint(tmp_path / "two", read_config(toy), tensors))
    assert [*layout.layers] == [0, 1, 2]
