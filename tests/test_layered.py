"""A model run one decoder layer at a time is the model."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import moeits
from moeits.calibration.activations import Activations, batches
from moeits.calibration.layered import LayeredModel
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError
from tests.calibrated import NO_NEXT_TOKEN, NOT_BY_LAYERS
from tests.toys import MODEL_TYPES, fuse, make_toy, read_config, read_tensors, write_checkpoint


def tokens() -> torch.Tensor:
    return torch.randint(2, 60, (3, 20), generator=torch.Generator().manual_seed(0))


def layer_by_layer(folder: Path) -> torch.Tensor:
    return layer_by_layer_of(Checkpoint.open(folder))


def layer_by_layer_of(checkpoint: Checkpoint) -> torch.Tensor:
    model = LayeredModel(checkpoint)
    hidden, arguments = model.start(tokens())
    for i in range(len(model)):
        with model.layer(i) as layer:
            hidden = layer.run(hidden, arguments[i])
    return model.logits(tokens(), hidden)


def as_a_whole(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return moeits.load(folder, dtype=torch.float32).eval()(input_ids=tokens(), use_cache=False).logits


NOT_SO = {**NOT_BY_LAYERS, **NO_NEXT_TOKEN}


@pytest.mark.parametrize("family", [each for each in MODEL_TYPES if each in NOT_SO])
def test_what_cannot_be_run_layer_by_layer_is_a_sentence(family: str, tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", family)
    with pytest.raises(CheckpointError, match=NOT_SO[family]):
        layer_by_layer(tmp_path / "toy")


@pytest.mark.parametrize("family", [each for each in MODEL_TYPES if each not in NOT_SO])
def test_layer_by_layer_is_the_whole_model(family: str, tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", family)
    torch.testing.assert_close(layer_by_layer(tmp_path / "toy"), as_a_whole(tmp_path / "toy"), rtol=0, atol=1e-5)


def test_fused_experts_and_tied_embeddings_are_read_too(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", "qwen2_moe", tie_word_embeddings=True)
    fuse(tmp_path / "toy", tmp_path / "fused")
    for folder in (tmp_path / "toy", tmp_path / "fused"):
        torch.testing.assert_close(layer_by_layer(folder), as_a_whole(folder), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_layers_of_unequal_counts_are_run_with_their_own(family: str, tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", family, experts=6)
    plan = moeits.plan(moeits.score(tmp_path / "toy"), experts_per_layer=4)
    last = max(plan.kept)
    uneven = replace(plan, kept={**plan.kept, last: plan.kept[last][:3]})
    moeits.prune(tmp_path / "toy", plan=uneven, output=tmp_path / "pruned")
    torch.testing.assert_close(layer_by_layer(tmp_path / "pruned"), as_a_whole(tmp_path / "pruned"), rtol=0, atol=1e-5)


def test_only_one_layer_has_weights(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", "mixtral")
    model = LayeredModel(Checkpoint.open(tmp_path / "toy"))
    for i in range(len(model)):
        with model.layer(i):
            live = [j for j, layer in enumerate(model.layers) if not next(layer.parameters()).is_meta]
            assert live == [i]
    assert all(next(layer.parameters()).is_meta for layer in model.layers)


def test_experts_are_stacked_with_one_of_them_held_beside(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", "mixtral", dtype="float32", experts=16, hidden_size=64, intermediate_size=512)
    model = LayeredModel(Checkpoint.open(tmp_path / "toy"))
    filling, moe = model._filling, model.layout.layers[0]
    tracemalloc.start()
    stacked = filling._stacked(moe, ("gate", "up"))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(stacked) == 16
    assert held < 1.25 * stacked.nbytes


def test_tensors_that_the_class_has_not_are_named(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", "mixtral")
    tensors = read_tensors(tmp_path / "toy")
    scale = {"model.layers.1.self_attn.q_proj.weight_scale": np.ones(1, np.float32)}
    write_checkpoint(tmp_path / "scaled", read_config(tmp_path / "toy"), tensors | scale)
    model = LayeredModel(Checkpoint.open(tmp_path / "scaled"))
    with (
        pytest.raises(CheckpointError, match=r"weight_scale of layer 1 is not a tensor of .*layer by layer"),
        model.layer(1),
    ):
        pass


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("gemma4_text", "model.embed_tokens.weight"),
        ("mixtral", "model.norm.weight"),
        ("mixtral", "model.layers.1.self_attn.q_proj.weight"),
    ],
)
def test_a_weight_that_the_checkpoint_lacks_is_named_and_never_made_up(
    family: str, missing: str, tmp_path: Path
) -> None:
    """Gemma 4's embeddings hold a number that is computed beside the weight."""
    make_toy(tmp_path / "toy", family)
    tensors = read_tensors(tmp_path / "toy")
    del tensors[missing]
    write_checkpoint(tmp_path / "less", read_config(tmp_path / "toy"), tensors)
    with pytest.raises(CheckpointError, match=rf"has no {missing}, which .* needs\. Download it again\.$"):
        layer_by_layer(tmp_path / "less")


def test_a_bug_in_what_watches_a_layer_is_not_told_as_one_of_the_checkpoint(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", "mixtral")
    model = LayeredModel(Checkpoint.open(tmp_path / "toy"))
    hidden, arguments = model.start(tokens())

    def watch(*_: object) -> None:
        raise TypeError("ours")

    with model.layer(0) as layer:
        layer.experts.register_forward_hook(watch)
        with pytest.raises(TypeError, match=r"^ours$"):
            layer.run(hidden, arguments[0])


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_layers_that_hand_on_more_are_told_for_any_number_of_windows(windows: int, tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", "zaya")
    model = LayeredModel(Checkpoint.open(tmp_path / "toy"))
    with pytest.raises(CheckpointError, match="hand on more than hidden states"):
        model.start(tokens()[:windows])


def test_activations_are_the_same_on_disk_and_gone_afterwards(tmp_path: Path) -> None:
    values = torch.randn(5, 3, 4)
    with Activations(most_bytes=0, beside=tmp_path / "new") as room:
        stream = room.array(5, 3, 4)
        for part in batches(5, 3, tokens=6):
            stream[part] = values[part]
        assert torch.equal(stream, values)
        assert list((tmp_path / "new").iterdir())
    assert not list((tmp_path / "new").iterdir())
