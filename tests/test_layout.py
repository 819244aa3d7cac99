"""Names become structure: which tensors are whose. What does not fit is in test_bad_input.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError, UnknownArchitecture, UnscorableWeight
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from moeits.experts.promises import per_layer_config
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


def test_tensors_of_another_tower_are_left_alone(tmp_path: Path, toy: Path) -> None:
    tensors = read_tensors(toy) | {"vision.layers.0.mlp.fc.weight": np.zeros((2, 2), np.float32)}
    _, layout = layout_of(write_checkpoint(tmp_path / "two", read_config(toy), tensors))
    assert [*layout.layers] == [0, 1, 2]


def test_a_model_among_others_is_called_what_it_is(tmp_path: Path, toy: Path) -> None:
    inner = read_config(toy)
    wrapped = {"model_type": "qwen9_vl_moe", "vision_config": {"model_type": "vit"}, "text_config": inner}
    tensors = {name.replace("model.", "model.language_model."): value for name, value in read_tensors(toy).items()}
    with pytest.raises(UnknownArchitecture, match=r"several models in one, .* in its text_config \(qwen2_moe\)\."):
        layout_of(write_checkpoint(tmp_path / "wrapped", wrapped, tensors))


def described(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Describe Qwen2-MoE in another way."""
    other = structs.replace(architecture_of({"model_type": "qwen2_moe"}), **changes)
    monkeypatch.setattr("moeits.experts.families.FAMILIES", (other,))


def test_layers_may_have_any_name(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described(monkeypatch, blocks=("transformer.blocks.{layer}.ffn",))
    tensors = {
        name.replace("model.layers.", "transformer.blocks.").replace(".mlp.", ".ffn."): value
        for name, value in read_tensors(toy).items()
    }
    other = write_checkpoint(tmp_path / "other", read_config(toy), tensors)
    assert [*layout_of(other)[1].layers] == [0, 1, 2]
    moeits.simplify(other, experts_per_layer=4, output=tmp_path / "out")
    assert [moe.num_experts for moe in layout_of(tmp_path / "out")[1].layers.values()] == [4, 4, 4]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shared": ("shared_expert.", "shared_expert_gate.", "gate.")}, "gate.weight would be of the router and of"),
        ({"shared": ("shared_expert", "experts.")}, "of a routed expert and of what is shared"),
    ],
)
def test_a_tensor_of_two_roles_is_an_error(
    toy: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sentence: str
) -> None:
    described(monkeypatch, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        layout_of(toy)


# ---------------------------------------------------------------------------------------------- packed weights


def quantized(folder: Path, toy: Path) -> Path:
    """A toy whose experts are packed as GPTQ packs them: other names, other shapes, other dtypes."""
    tensors: dict[str, np.ndarray] = {}
    for number, (name, value) in enumerate(read_tensors(toy).items()):
        if ".experts." in name:
            stem = name.removesuffix("weight")
            tensors[stem + "qweight"] = np.full((4, 6), number, np.int32)
            tensors[stem + "scales"] = np.full((1, 6), number, np.float16)
        else:
            tensors[name] = value
    return write_checkpoint(folder, read_config(toy), tensors)


def test_packed_experts_are_pruned_as_bytes(tmp_path: Path, toy: Path) -> None:
    packed = quantized(tmp_path / "packed", toy)
    plan = moeits.simplify(packed, criterion="random", experts_per_layer=3, output=tmp_path / "out")
    before, after = read_tensors(packed), read_tensors(tmp_path / "out")
    for layer, kept in plan.kept.items():
        for number, expert in enumerate(kept):
            for part in ("gate_proj.qweight", "gate_proj.scales", "down_proj.qweight", "down_proj.scales"):
                old, new = (f"model.layers.{layer}.mlp.experts.{e}.{part}" for e in (expert, number))
                assert after[new].tobytes() == before[old].tobytes()


def test_packed_experts_are_not_scored_and_the_sentence_says_what_to_do(tmp_path: Path, toy: Path) -> None:
    packed = quantized(tmp_path / "packed", toy)
    with pytest.raises(
        UnscorableWeight,
        match=r"0\.gate_proj\.qweight \(I32\), .*gate_proj\.scales \(F16\): .* Score another release of the model",
    ):
        moeits.score(packed)


def test_experts_of_unequal_sets_of_tensors_are_refused(tmp_path: Path, toy: Path) -> None:
    tensors = read_tensors(quantized(tmp_path / "packed", toy))
    del tensors["model.layers.1.mlp.experts.4.up_proj.scales"]
    with pytest.raises(CheckpointError, match="Experts 0 and 4 of layer 1 differ"):
        layout_of(write_checkpoint(tmp_path / "odd", read_config(toy), tensors))


def test_fused_experts_in_blocks_and_scales_are_pruned_as_bytes(tmp_path: Path) -> None:
    """Names as gpt-oss has them on the hub (MXFP4): the expert axis first in blocks, scales and biases alike."""
    toy = make_toy(tmp_path / "toy", "gpt_oss")
    tensors = read_tensors(toy)
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        _, rows, columns = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (6, columns, rows // 4, 2), np.uint8)
        tensors[f"{name}_scales"] = rng.integers(0, 256, (6, columns, 1), np.uint8)
    packed = write_checkpoint(tmp_path / "packed", read_config(toy), tensors)
    plan = moeits.simplify(packed, criterion="random", experts_per_layer=3, output=tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    for layer, kept in plan.kept.items():
        for name in (name for name in tensors if f"layers.{layer}.mlp." in name):
            assert after[name].tobytes() == tensors[name][list(kept)].tobytes(), name
