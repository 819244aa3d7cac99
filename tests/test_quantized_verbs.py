"""What computes new weights, or runs layers, says of a quantized release what to do instead, before any work."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError, HealingError
from moeits.experts.quantized import quantized_as
from tests.evaluation_toys import make_speaking_toy
from tests.healing_toys import texts, write_rows
from tests.packed import raw_tensors, write_packed
from tests.quantizers import quantized_copy
from tests.toys import make_toy, read_config

FORMS = ("compressed-tensors int4", "modelopt nvfp4", "gptq", "bitsandbytes")
Verb = Callable[[Path, Path], object]


@pytest.fixture(scope="module", params=FORMS)
def release(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    toy = make_speaking_toy(folder / "toy", model_type="qwen3_moe", layers=2, hidden_size=64, moe_intermediate_size=64)
    packed, _ = quantized_copy(toy, folder, request.param)
    for path in toy.iterdir():
        if not (packed / path.name).exists():
            (packed / path.name).write_bytes(path.read_bytes())
    return packed


def refit(model: Path, folder: Path) -> object:
    pruned = folder / "pruned"
    moeits.prune(model, plan=moeits.plan(moeits.score(model), experts_per_layer=3), output=pruned)
    return moeits.refit(pruned, parent=model, output=folder / "out")


def heal(model: Path, folder: Path) -> object:
    pruned, data = folder / "pruned", write_rows(folder / "rows.jsonl", texts(12))
    moeits.prune(model, plan=moeits.plan(moeits.score(model), experts_per_layer=3), output=pruned)
    return moeits.heal(pruned, data=data, output=folder / "out", recipe="small")


def simplify_and_refit(model: Path, folder: Path) -> object:
    return moeits.simplify(model, output=folder / "out", experts_per_layer=3, refit=True)


def simplify_and_heal(model: Path, folder: Path) -> object:
    data = write_rows(folder / "rows.jsonl", texts(12))
    return moeits.simplify(model, output=folder / "out", experts_per_layer=3, heal=data)


def simplify_by_reap(model: Path, folder: Path) -> object:
    return moeits.simplify(model, output=folder / "out", experts_per_layer=3, criterion="reap")


def calibrate(model: Path, folder: Path) -> object:
    return moeits.calibrate(model, output=folder / "out")


@pytest.mark.parametrize("verb", [refit, heal, simplify_and_refit, simplify_and_heal, simplify_by_reap, calibrate])
def test_new_weights_and_runs_are_refused_with_what_to_do_and_nothing_is_written(
    release: Path, tmp_path: Path, verb: Verb
) -> None:
    with pytest.raises((CalibrationError, HealingError), match=r"is quantized \(.*\).*a copy in bf16") as error:
        verb(release, tmp_path)
    assert "--any-fingerprint" in str(error.value)
    assert not [path.name for path in tmp_path.iterdir() if path.name not in {"pruned", "rows.jsonl"}]


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("model.layers.0.self_attn.bias_table", "int32", None),
        ("model.layers.0.self_attn.mask", "uint8", None),
        ("model.position_ids", "int16", None),
        ("model.layers.0.self_attn.mask", "bool", None),
        ("model.layers.0.self_attn.q_proj.weight", "int8", "I8"),
        ("model.layers.0.self_attn.q_proj.qweight", "int32", "I32"),
        ("model.layers.0.self_attn.q_proj.weight_packed", "int32", "I32"),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "uint8", "U8"),
        ("model.layers.0.self_attn.mask", "float8_e4m3fn", "F8_E4M3"),
    ],
)
def test_integers_make_a_model_a_quantized_one_where_they_are_named_as_weights(
    tmp_path: Path, name: str, dtype: str, said: str | None
) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe")
    more = {name: torch.ones(4, 4).to(getattr(torch, dtype))}
    folder = write_packed(tmp_path / "more", read_config(toy), raw_tensors(toy) | more)
    assert quantized_as(Checkpoint.open(folder)) == said
