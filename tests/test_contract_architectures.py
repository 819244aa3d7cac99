"""One specification for every registered architecture: whoever adds one gets it applied for free.

What surgery does to each is in test_contract_surgery.py, what healing does in test_contract_heal.py.
"""

from pathlib import Path

import pytest
import transformers

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import UnknownArchitecture
from moeits.experts.families import Architecture, architecture_of
from moeits.experts.layout import MoELayout
from moeits.experts.rules import Number
from tests.stock import moe_layers_of
from tests.toys import BY_THEMSELVES, make_toy, moe_layers, read_config


@pytest.fixture(params=BY_THEMSELVES, ids=lambda architecture: architecture.model_type)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


def test_transformers_has_it_natively(architecture: Architecture) -> None:
    config = transformers.AutoConfig.for_model(architecture.model_type)
    assert type(config) in getattr(transformers, architecture.auto_class)._model_mapping
    assert hasattr(config, architecture.top_k_key)
    assert any(hasattr(config, key) for key in architecture.num_experts_keys)


def test_its_projections_and_fused_tensors_name_each_other(architecture: Architecture) -> None:
    stacked = [projection for projections in architecture.fused.values() for projection in projections]
    assert tuple(stacked) == architecture.projection_names
    assert tuple(architecture.projections) in {(), architecture.projection_names}
    assert len(set(architecture.projections.values())) == len(architecture.projections)


def test_its_names_can_be_filled_in(architecture: Architecture) -> None:
    assert all("{layer}" in block for block in architecture.blocks)
    assert "{expert}" in architecture.expert
    assert "{tensor}" in architecture.expert
    assert architecture.router
    assert not any(name.startswith(architecture.shared) for name in architecture.router if architecture.shared)


def test_a_config_is_recognised_by_its_model_type(architecture: Architecture) -> None:
    assert architecture_of({"model_type": architecture.model_type}) is architecture


def test_a_near_miss_is_answered_with_its_name(architecture: Architecture) -> None:
    near = architecture.model_type.replace("_", "") + "x"
    with pytest.raises(UnknownArchitecture, match=f"Did you mean '{architecture.model_type}'"):
        architecture_of({"model_type": near, "num_experts": 8})


def test_the_stock_class_of_it_has_experts_in_the_same_layers(tmp_path: Path, architecture: Architecture) -> None:
    toy = make_toy(tmp_path / "toy", architecture.model_type)
    config = read_config(toy)
    there = moe_layers_of(config, architecture.num_experts_keys[0])
    layout = MoELayout.of(Checkpoint.open(toy))
    assert there == sorted({*layout.layers, *layout.whole})
    assert moe_layers(config) == [*layout.layers]


def test_every_tensor_of_its_block_is_accounted_for(tmp_path: Path, architecture: Architecture) -> None:
    checkpoint = Checkpoint.open(make_toy(tmp_path / "toy", architecture.model_type))
    for moe in MoELayout.of(checkpoint).layers.values():
        experts = {name for tensors in moe.experts.values() for name in tensors.values()}
        parts = [experts, set(moe.router), set(moe.shared), set(moe.fused.values())]
        inside = {name for name in checkpoint.tensors if name.startswith(moe.within)}
        assert set.union(*parts) == inside
        assert sum(map(len, parts)) == len(inside), "no tensor is two things"


def test_a_config_without_a_key_means_what_its_class_says(architecture: Architecture) -> None:
    config = transformers.AutoConfig.for_model(architecture.model_type)
    said = {
        number.key: number.absent
        for number in (architecture.layers.start, architecture.layers.every, *_of_groups(architecture))
        if isinstance(number, Number) and number.absent is not None
    }
    assert said == {key: getattr(config, key, absent) or absent for key, absent in said.items()}


def test_a_config_that_says_nothing_has_experts_where_its_class_has_them(architecture: Architecture) -> None:
    config = transformers.AutoConfig.for_model(architecture.model_type, num_hidden_layers=6)
    kinds = getattr(config, "mlp_layer_types", None) or ["sparse"] * 6
    says_nothing = [architecture.is_moe_layer({"num_hidden_layers": 6}, layer) for layer in range(6)]
    if hasattr(config, "mlp_layer_types"):
        assert says_nothing == [kind in ("sparse", "moe") for kind in kinds]


def _of_groups(architecture: Architecture) -> tuple[Number, ...]:
    return (architecture.limit.number, architecture.limit.chosen) if architecture.limit else ()
