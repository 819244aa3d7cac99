"""The toys themselves: what the other tests stand on."""

from pathlib import Path

import numpy as np
import pytest

from moeits.checkpoint.reading import Checkpoint
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from tests.toys import DTYPES, MODEL_TYPES, ONE_BY_ONE, fuse, make_toy, moe_layers, read_config, read_tensors, reshard


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_toy_is_a_checkpoint_of_its_architecture(tmp_path: Path, model_type: str, dtype: str) -> None:
    checkpoint = Checkpoint.open(make_toy(tmp_path / "toy", model_type, dtype=dtype))
    layout = MoELayout.of(checkpoint)
    assert layout.architecture.model_type == model_type
    assert list(layout.layers) == moe_layers(checkpoint.config)
    assert {moe.num_experts for moe in layout.layers.values()} == {6}


@pytest.mark.parametrize("model_type", ONE_BY_ONE)
def test_fused_and_resharded_toys_hold_the_same_numbers(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type)
    tensors, other = read_tensors(toy), read_tensors(reshard(toy, tmp_path / "other", shards=4))
    assert tensors.keys() == other.keys()
    assert all(np.array_equal(tensors[name], other[name]) for name in tensors)
    fused = read_tensors(fuse(toy, tmp_path / "fused"))
    assert sum(t.size for t in fused.values()) == sum(t.size for t in tensors.values())
    ends = tuple(architecture_of(read_config(toy)).fused)
    layout = MoELayout.of(Checkpoint.open(toy))
    assert len([name for name in fused if name.endswith(ends)]) == len(ends) * len({*layout.layers, *layout.whole})


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_stock_transformers_finds_every_tensor_of_a_toy(tmp_path: Path, model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    for folder in (toy, *([fuse(toy, tmp_path / "fused")] if model_type in ONE_BY_ONE else [])):
        stock = getattr(transformers, architecture_of(read_config(folder)).auto_class)
        _, found = stock.from_pretrained(folder, output_loading_info=True)
        assert not any(found.values()), found
