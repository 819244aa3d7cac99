"""Checkpoints of several models, one of which has experts: for every registered family of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import moeits
from moeits.calibration.layered import LayeredModel
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError, HealingError
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from moeits.healing.targets import can_be_healed, targets_of
from tests.calibrated import NOT_BY_LAYERS
from tests.healing_toys import spelt, write_letters, write_rows
from tests.masked import (
    EXTRA_ROWS,
    TOLERANCE,
    continuation,
    continuation_without_cache,
    logits,
    routers_masked,
    routers_of,
)
from tests.senses import SENSES, sensed, sensed_and_told, with_small_tokens
from tests.test_contract_calibrate import calibrated_and_refitted
from tests.test_layered import as_a_whole, layer_by_layer
from tests.toys import read_config, read_tensors, write_checkpoint
from tests.wrappers import (
    EXPERTS,
    LIKE_THEIR_TEXT_MODEL,
    REOPENED_UNDER_HUB_NAMES_ONLY,
    WRAPPERS,
    make_wrapper,
    stock_class,
)

TOKENS = torch.arange(2, 26).view(2, 12)
LOADERS = ("auto_map", "moeits")


def not_by_layers(wrapper: Path) -> bool:
    return read_config(wrapper)["model_type"] in NOT_BY_LAYERS


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.every_family] if name in LIKE_THEIR_TEXT_MODEL else [])
        for name in WRAPPERS
    ],
)
def wrapper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wrapper(tmp_path_factory.mktemp(request.param) / "toy", request.param)


def opened(folder: Path, **options: Any) -> Any:
    return stock_class(read_config(folder)["model_type"]).from_pretrained(folder, dtype="auto", **options).eval()


def text_model(model: Any) -> Any:
    """What has the decoder layers, in the shape that the oracle asks for."""
    decoder = model.get_decoder()
    return SimpleNamespace(model=getattr(decoder, "model", decoder))


def masked_logits(folder: Path, kept: Mapping[int, tuple[int, ...]]) -> torch.Tensor:
    original = opened(folder)
    with routers_masked(text_model(original), kept, EXPERTS, EXTRA_ROWS.get(read_config(folder)["model_type"], 0)):
        return logits(original, TOKENS)


def pruned(wrapper: Path, folder: Path, **budget: Any) -> tuple[Path, Any]:
    plan = moeits.simplify(wrapper, output=folder, **budget)
    assert plan.summary["experts_kept"] < plan.summary["experts_before"]
    return folder, plan


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert (ours - expected).abs().max() < TOLERANCE * max(1.0, float(expected.abs().max()))


def test_every_tensor_of_its_blocks_is_accounted_for(wrapper: Path) -> None:
    checkpoint = Checkpoint.open(wrapper)
    layout = MoELayout.of(checkpoint)
    assert layout.architecture.model_type == read_config(wrapper)["model_type"]
    for moe in layout.layers.values():
        experts = {name for tensors in moe.experts.values() for name in tensors.values()}
        parts = [experts, set(moe.router), set(moe.shared), set(moe.fused.values())]
        inside = {name for name in checkpoint.tensors if name.startswith(moe.within)}
        assert set.union(*parts) == inside
        assert sum(map(len, parts)) == len(inside)


def test_equal_counts_open_in_the_stock_class_and_compute_what_the_masked_original_computes(
    wrapper: Path, tmp_path: Path
) -> None:
    out, plan = pruned(wrapper, tmp_path / "out", experts_per_layer=4)
    ours = opened(out)
    assert type(ours).__name__ == read_config(wrapper)["architectures"][0]
    expected = masked_logits(wrapper, plan.kept)
    assert_close(logits(ours, TOKENS), expected)
    assert_close(logits(moeits.load(out).eval(), TOKENS), expected)
    assert not list(out.glob("*.py"))


def test_unequal_counts_open_both_ways_and_compute_what_the_masked_original_computes(
    wrapper: Path, tmp_path: Path
) -> None:
    evidence = moeits.score(wrapper)
    first, *_, last = evidence.inventory.layers
    plan = moeits.plan(evidence, experts_per_layer=5)
    uneven = replace(plan, kept={**plan.kept, first: (1, 2, 5), last: (0, 1, 3, 4)}, order={})
    moeits.prune(wrapper, plan=uneven, output=tmp_path / "out")
    expected = masked_logits(wrapper, uneven.kept)
    assert_close(logits(moeits.load(tmp_path / "out").eval(), TOKENS), expected)
    remote = opened(tmp_path / "out", trust_remote_code=True)
    assert_close(logits(remote, TOKENS), expected)
    assert type(remote).__name__ == read_config(wrapper)["architectures"][0]
    other = {**uneven.kept, first: (1, 2, 4)}
    assert (masked_logits(wrapper, other) - expected).abs().max() > 100 * TOLERANCE
    with pytest.raises(Exception, match=r"(?s)mismatch"):
        opened(tmp_path / "out")


def test_what_was_loaded_can_be_saved_and_loaded_again(wrapper: Path, tmp_path: Path) -> None:
    if read_config(wrapper)["model_type"] in REOPENED_UNDER_HUB_NAMES_ONLY:
        pytest.skip("transformers does not open what it saves of it")
    plan = moeits.plan(moeits.score(wrapper), tau=0.1)
    kept = {layer: tuple(range(3 + at)) for at, layer in enumerate(plan.kept)}
    moeits.prune(wrapper, plan=replace(plan, kept=kept, order={}), output=tmp_path / "out")
    ours = moeits.load(tmp_path / "out").eval()
    ours.save_pretrained(tmp_path / "saved")
    again = moeits.load(tmp_path / "saved").eval()
    before, after = ours.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    # The same numbers may be summed in another order where they lie otherwise in memory.
    assert_close(logits(again, TOKENS), logits(ours, TOKENS))


@pytest.mark.parametrize("budget", [{"experts_per_layer": 4}, {"tau": 0.1}], ids=["equal", "unequal"])
def test_everything_else_is_as_it_was(wrapper: Path, tmp_path: Path, budget: dict[str, Any]) -> None:
    out, _ = pruned(wrapper, tmp_path / "out", **budget)
    before, after = read_config(wrapper), read_config(out)
    part = architecture_of(before).part
    assert [key for key in after if key not in LOADERS] == [key for key in before if key not in LOADERS]
    assert {key: value for key, value in after.items() if key not in (*LOADERS, part)} == {
        key: value for key, value in before.items() if key not in (*LOADERS, part)
    }
    changed = {key for key in before[part] if before[part][key] != after[part].get(key)}
    added = set(after["moeits"].get("added_keys", ()))  # other spellings, for older readers
    assert after[part].keys() - added == before[part].keys() - added
    assert changed <= {*architecture_of(before).count_keys(before[part])}
    layers = MoELayout.of(Checkpoint.open(wrapper)).layers.values()
    tensors, others = read_tensors(wrapper), read_tensors(out)
    outside = {name for name in tensors if not any(name.startswith(moe.within) for moe in layers)}
    assert outside == {name for name in others if not any(name.startswith(moe.within) for moe in layers)}
    assert all(tensors[name].tobytes() == others[name].tobytes() for name in outside)


@pytest.mark.parametrize("counts", [(4, 4, 4), (3, 5, 4)], ids=["equal", "unequal"])
def test_a_picture_or_a_sound_is_sensed_as_by_the_masked_original(
    wrapper: Path, tmp_path: Path, counts: tuple[int, ...]
) -> None:
    """And what it writes of it. Of equal counts the stock class opens what was pruned by itself."""
    toy, out = with_small_tokens(wrapper, tmp_path / "toy"), tmp_path / "out"
    model_type = read_config(toy)["model_type"]
    plan = moeits.plan(moeits.score(toy), experts_per_layer=5)
    kept = {layer: tuple(range(EXPERTS - count, EXPERTS)) for layer, count in zip(plan.kept, counts, strict=False)}
    moeits.prune(toy, plan=replace(plan, kept=kept, order={}), output=out)
    pruned = opened(out) if len(set(kept.values())) == 1 else moeits.load(out).eval()
    original, inputs = opened(toy), sensed(model_type)
    assert type(pruned).__name__ == type(original).__name__
    ours, told = sensed_and_told(pruned, inputs)
    unpruned, _ = sensed_and_told(original, inputs)
    with routers_masked(text_model(original), kept, EXPERTS, EXTRA_ROWS.get(model_type, 0)):
        expected, expected_told = sensed_and_told(original, inputs)
        of_another, _ = sensed_and_told(original, sensed(model_type, seed=1))
    assert_close(ours, expected)
    assert torch.equal(told, expected_told)
    largest = float(expected.abs().max())
    assert (unpruned - expected).abs().max() > 100 * TOLERANCE * largest
    assert (of_another - expected).abs().max() > 100 * TOLERANCE * largest, "its picture should matter"


def test_every_wrapper_is_given_a_picture_or_a_sound() -> None:
    assert SENSES.keys() == {*WRAPPERS}


def test_experts_in_columns_are_scored_and_opened_as_those_in_rows(tmp_path: Path) -> None:
    rows = make_wrapper(tmp_path / "rows", "qwen3_vl_moe")
    tensors = {
        name: np.ascontiguousarray(value.swapaxes(1, 2)) if value.ndim == 3 and ".experts." in name else value
        for name, value in read_tensors(rows).items()
    }
    columns = write_checkpoint(tmp_path / "columns", read_config(rows), tensors)
    one, other = moeits.score(rows).redundancy, moeits.score(columns).redundancy
    assert all(np.array_equal(one[layer], other[layer]) for layer in one)
    plan = moeits.simplify(columns, experts_per_layer=4, output=tmp_path / "out")
    assert_close(logits(opened(tmp_path / "out"), TOKENS), masked_logits(rows, plan.kept))


def test_layer_by_layer_its_text_model_is_the_whole(wrapper: Path) -> None:
    if not_by_layers(wrapper):
        with pytest.raises(CheckpointError, match=NOT_BY_LAYERS[read_config(wrapper)["model_type"]]):
            layer_by_layer(wrapper)
        return
    torch.testing.assert_close(layer_by_layer(wrapper), as_a_whole(wrapper), rtol=0, atol=1e-5)


def test_no_other_tower_is_read_to_run_it(wrapper: Path) -> None:
    if not_by_layers(wrapper):
        pytest.skip("it is not run layer by layer")
    model = LayeredModel(Checkpoint.open(wrapper)).model
    filled = {name for name, value in model.named_parameters() if not value.is_meta}
    of_modules = {name.rpartition(".")[0].rpartition(".")[2] for name in filled}
    assert "lm_head" in of_modules
    assert of_modules & {"embed_tokens", "embeddings"}
    assert not [name for name in filled if any(part in name for part in ("vision", "visual", "audio", "projector"))]


def test_layers_of_unequal_counts_are_run_with_their_own(wrapper: Path, tmp_path: Path) -> None:
    if not_by_layers(wrapper):
        pytest.skip("it is not run layer by layer")
    plan = moeits.plan(moeits.score(wrapper), experts_per_layer=5)
    kept = {layer: tuple(range(2 + at)) for at, layer in enumerate(plan.kept)}
    moeits.prune(wrapper, plan=replace(plan, kept=kept, order={}), output=tmp_path / "out")
    torch.testing.assert_close(layer_by_layer(tmp_path / "out"), as_a_whole(tmp_path / "out"), rtol=0, atol=1e-5)


def test_it_is_calibrated_refitted_and_evaluated_by_text_or_told_why_not(wrapper: Path, tmp_path: Path) -> None:
    refitted = calibrated_and_refitted(wrapper, tmp_path)
    if refitted is not None:
        (tmp_path / "text.txt").write_text(spelt(at % 62 for at in range(100)))
        found = moeits.evaluate(refitted, perplexity=tmp_path / "text.txt", parent=wrapper, window=8)
        assert found.perplexity is not None
        assert {*found.model["experts"].values()} == {4}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_routers_and_experts_of_its_text_model_are_healed_and_nothing_else(wrapper: Path, tmp_path: Path) -> None:
    write_letters(wrapper)
    plan = moeits.plan(moeits.score(wrapper), experts_per_layer=5)
    kept = {layer: tuple(range(3 + at)) for at, layer in enumerate(plan.kept)}
    out = tmp_path / "out"
    moeits.prune(wrapper, plan=replace(plan, kept=kept, order={}), output=out)
    rows = [{"text": spelt((start + at) % 62 for at in range(12))} for start in range(24)]
    data, asked = write_rows(tmp_path / "data.jsonl", rows), {"recipe": "small", "rank": 4, "batch_size": 4, "steps": 6}
    asked |= {"sequence_length": 16, "packing": False, "learning_rate": 1e-2, "keep_adapter": True}
    if not can_be_healed(architecture_of(read_config(wrapper))):
        with pytest.raises(HealingError, match="can be scored and pruned, but not healed"):
            moeits.heal(out, data=data, output=tmp_path / "healed", **asked)
        return
    if no_adapter := read_config(wrapper)["model_type"] in {"deepseek_ocr2", "unlimited_ocr"}:
        with pytest.raises(HealingError, match="peft does not find its experts in the adapter again"):
            moeits.heal(out, data=data, output=tmp_path / "healed", **asked)
        assert not (tmp_path / "healed").exists()
        asked["keep_adapter"] = False
    healing = moeits.heal(out, data=data, output=tmp_path / "healed", **asked)
    assert healing.loss_after is not None
    assert healing.loss_before is not None
    assert healing.loss_after < healing.loss_before
    assert healing.loss_merged == pytest.approx(healing.loss_after, abs=1e-5)
    before, after = read_tensors(out), read_tensors(tmp_path / "healed")
    layers = MoELayout.of(Checkpoint.open(out)).layers.values()
    asked_for = {name for moe in layers for name in (next(iter(moe.router)), *moe.fused.values())}
    asked_for |= {name for moe in layers for tensors in moe.experts.values() for name in tensors.values()}
    assert {name for name in before if before[name].tobytes() != after[name].tobytes()} == asked_for
    assert read_config(tmp_path / "healed") == read_config(out)
    if no_adapter:
        return
    base = moeits.load(out).eval()
    adapted = logits(
        pytest.importorskip("peft").PeftModel.from_pretrained(base, tmp_path / "healed" / "adapter"), TOKENS
    )
    assert (adapted - logits(moeits.load(tmp_path / "healed"), TOKENS)).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_attention_of_the_text_model_is_adapted_and_that_of_a_tower_is_not(tmp_path: Path) -> None:
    """Kimi-K2.5 names its layers in files in another way than in memory."""
    toy = make_wrapper(tmp_path / "toy", "kimi_k25")
    targets = targets_of(Checkpoint.open(toy), MoELayout.of(Checkpoint.open(toy)), ("attention", "shared_experts"))
    known = dict(moeits.load(toy).named_modules())
    assert targets
    for target in targets:
        assert target.module.startswith("model.language_model.layers.")
        assert tuple(known[target.module].weight.shape) == target.weights["weight"][1:]
        assert target.tensor is not None
        assert target.tensor.startswith("language_model.model.layers.")


def test_it_writes_on_with_its_cache_as_without(wrapper: Path, tmp_path: Path) -> None:
    plan = moeits.plan(moeits.score(wrapper), experts_per_layer=5)
    kept = {layer: tuple(range(3 + at)) for at, layer in enumerate(plan.kept)}
    moeits.prune(wrapper, plan=replace(plan, kept=kept, order={}), output=tmp_path / "out")
    model = moeits.load(tmp_path / "out").eval()
    assert torch.equal(continuation(model, TOKENS), continuation_without_cache(model, TOKENS))


def test_training_it_with_the_logits_of_its_routers_reaches_each_of_them(wrapper: Path, tmp_path: Path) -> None:
    plan = moeits.plan(moeits.score(wrapper), experts_per_layer=5)
    kept = {layer: tuple(range(3 + at)) for at, layer in enumerate(plan.kept)}
    moeits.prune(wrapper, plan=replace(plan, kept=kept, order={}), output=tmp_path / "out")
    model = moeits.load(tmp_path / "out").train()
    extra = EXTRA_ROWS.get(read_config(wrapper)["model_type"], 0)
    routers = routers_of(text_model(model), {layer: len(ids) for layer, ids in kept.items()}, extra)
    assert len(routers) == len(kept)
    model(input_ids=TOKENS, labels=TOKENS, output_router_logits=True).loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in routers.values())


def test_a_config_without_the_part_is_a_sentence(wrapper: Path) -> None:
    config = {key: value for key, value in read_config(wrapper).items() if key != "text_config"}
    with pytest.raises(CheckpointError, match="has no text_config"):
        architecture_of(config).part_of(config)
