"""Readers older than transformers 5 find the rotary base and the dtype where they look, and it means what it meant."""

import json
from pathlib import Path
from typing import Any

import pytest

import moeits
from moeits.surgery.classic_keys import classic_keys
from tests.toys import MODEL_TYPES, make_toy, read_config

NO_YARN = {"phimoe"}  # its class knows another scaling only
YARN = {"rope_type": "yarn", "rope_theta": 50000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def meaning(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    (folder / "config.json").write_text(json.dumps(config))
    read = AutoConfig.from_pretrained(folder)
    return {"rope": read.rope_parameters, "dtype": read.dtype}


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, "as the class has it") for family in MODEL_TYPES]
    + [(family, "yarn") for family in MODEL_TYPES if family not in NO_YARN],
)
def test_a_config_means_the_same_with_its_keys_in_the_classic_spelling(tmp_path: Path, family: str, kind: str) -> None:
    from transformers import AutoConfig

    config = {**AutoConfig.for_model(family).to_dict(), "dtype": "bfloat16"}
    rope = config.get("rope_parameters")
    if not rope or any(isinstance(value, dict) for value in rope.values()):
        assert classic_keys(config).keys() <= {"torch_dtype"}
        return
    if kind == "yarn":
        config["rope_parameters"] = {**rope, **YARN}
    added = classic_keys(config)
    before, after = meaning(tmp_path, config), meaning(tmp_path, {**config, **added})
    assert after["dtype"] == before["dtype"]
    before["rope"].pop("type", None)
    assert {key: value for key, value in after["rope"].items() if key != "type"} == before["rope"]


def test_a_pruned_config_has_them_and_its_card_says_so(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", rope_parameters={"rope_type": "default", "rope_theta": 12345.0})
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 12345.0
    assert config["torch_dtype"] == config["dtype"]
    assert config["moeits"]["added_keys"] == ["rope_theta", "torch_dtype"]
    assert "config.json also has `rope_theta`, `torch_dtype`" in (tmp_path / "out" / "README.md").read_text()


def test_a_scaling_has_its_classic_name_and_kind_and_not_the_base() -> None:
    added = classic_keys({"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}})
    scaling = {"rope_type": "yarn", "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert added == {"rope_theta": 50000.0, "partial_rotary_factor": 0.5, "rope_scaling": scaling}
    assert "rope_scaling" not in classic_keys({"rope_parameters": YARN, "rope_theta": 6e6})


def test_what_a_source_says_itself_is_left_as_it_is() -> None:
    assert classic_keys({"rope_theta": 1e6, "torch_dtype": "bfloat16"}) == {}
    both = {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}
    assert classic_keys(both) == {}


def test_layers_with_rotary_bases_of_their_own_have_no_classic_spelling() -> None:
    of_kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert classic_keys({"rope_parameters": of_kinds}) == {}


@pytest.mark.parametrize("family", ["qwen3_moe", "mellum"])
def test_an_equal_count_has_the_name_that_the_hubs_files_give_it_too(tmp_path: Path, family: str) -> None:
    """transformers 5 writes num_local_experts; transformers 4 and mlx-lm look for num_experts, or take their own."""
    toy = make_toy(tmp_path / "toy", family)
    before = read_config(toy)
    before["num_local_experts"] = before.pop("num_experts", before.get("num_local_experts"))
    (toy / "config.json").write_text(json.dumps(before))
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert config["num_experts"] == config["num_local_experts"] == 4
    assert "num_experts" in config["moeits"]["added_keys"]
    assert [row.experts for row in moeits.inspect(tmp_path / "out").layers] == [4, 4, 4]
    assert moeits.load(tmp_path / "out").config.num_experts == 4
    again = moeits.simplify(tmp_path / "out", tau=0.5, output=tmp_path / "again", layout="per-layer")
    counts = {layer: len(kept) for layer, kept in again.kept.items()}
    assert {row.layer: row.experts for row in moeits.inspect(tmp_path / "again").layers} == counts
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "first", layout="per-layer")
    of_layers = read_config(tmp_path / "first")["per_layer_config"]
    assert {layer: values["num_experts"] for layer, values in of_layers.items()} == {
        layer: values["num_local_experts"] for layer, values in of_layers.items()
    }
    layers = moeits.load(tmp_path / "first").model.layers
    assert [layer.mlp.gate.weight.shape[0] for layer in layers] == [len(kept) for kept in plan.kept.values()]
