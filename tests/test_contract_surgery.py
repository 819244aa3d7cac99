"""Surgery on toys of every registered architecture: whoever adds one gets all of it applied.

What should be left, and what it should compute, is said by stock transformers (`stock.py`, `masked.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import PlanError
from moeits.evidence import Evidence
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.surgery.fates import Copy, Drop, Rename, Take, fates, new_tensors
from tests.masked import (
    EXTRA_ROWS,
    TOLERANCE,
    continuation,
    continuation_without_cache,
    logits,
    routers_masked,
    routers_of,
)
from tests.stock import stock, what_is_left
from tests.toys import (
    FORMS,
    MODEL_TYPES,
    NEVER_UNIFORM,
    ONE_BY_ONE,
    VOCAB,
    assert_same_model,
    fuse,
    make_toy,
    moe_layers,
    of_each_kind,
    read_config,
    read_tensors,
    reshard,
    write_checkpoint,
)

EXPERTS = 6
TOKENS = torch.arange(2 * 20).reshape(2, 20) * 7 % VOCAB
UNEVEN = {0: (0, 2, 3, 5), 1: (1, 4), 2: (0, 1, 3, 4, 5)}
EQUAL = {0: (0, 2, 3), 1: (1, 4, 5), 2: (2, 3, 4)}
FEW = {0: (3,), 1: (1, 4), 2: (0, 1, 3)}

CACHE_OF_ANOTHER_MODEL = {"minimax"}
"""Stock transformers 5.23 computes something else with its cache than without, unpruned too."""

Kept = Mapping[int, tuple[int, ...]]


def kept_sets(least: int = 1) -> st.SearchStrategy[dict[int, tuple[int, ...]]]:
    experts = st.sets(st.integers(0, EXPERTS - 1), min_size=least).map(lambda ids: tuple(sorted(ids)))
    return st.fixed_dictionaries(dict.fromkeys(range(3), experts))


def opened(folder: Path, **kwargs: Any) -> Any:
    auto = getattr(transformers, architecture_of(read_config(folder)).auto_class)
    return auto.from_pretrained(folder, dtype=torch.float32, **kwargs)


def loaded(folder: Path) -> Any:
    return moeits.load(folder, dtype=torch.float32)


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit: of it float32 rounds off 1e-7 at each of many sums."""
    return float((found - expected).abs().max() / expected.abs().max())


def assert_same(one: Any, other: Any) -> None:
    """Both ways build the same model: the same weights to the bit, and logits to rounding."""
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert furthest(logits(one, TOKENS), logits(other, TOKENS)) < TOLERANCE


def allowed(toy: Path, kept: Kept) -> dict[int, tuple[int, ...]]:
    """As many experts in the toy's MoE layers, or more where its router needs more."""
    config = read_config(toy)
    least = architecture_of(config).least_per_group(config)
    return {
        layer: kept[layer] if len(kept[layer]) >= least else tuple(sorted({*kept[layer], 0, 1, 2})[:least])
        for layer in moe_layers(config)
    }


def keep(toy: Path, kept: Kept, output: Path, layout: str = "auto") -> Path:
    """Prune to exactly these experts, by a plan edited by hand."""
    checkpoint = Checkpoint.open(toy)
    evidence = Evidence(inventory=Inventory.of(checkpoint, MoELayout.of(checkpoint)))
    made = moeits.plan(evidence, criterion="random", experts_per_layer=EXPERTS)
    edited = replace(made, kept={layer: kept[layer] for layer in made.kept}, order={})
    moeits.prune(toy, plan=edited, output=output, layout=layout)
    return output


# ------------------------------------------------------------------------------------------------------- on disk


class Toys(dict[str, Path]):
    """A toy of every architecture in each form, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, form: str) -> Path:
        model_type, _, fused = form.partition(" ")
        folder = self.folder / form.replace(" ", "-")
        self[form] = fuse(self[model_type], folder) if fused else make_toy(folder, model_type, shards=2)
        return self[form]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    return Toys(tmp_path_factory.mktemp("toys"))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10)
@given(kept=kept_sets())
def test_every_tensor_has_exactly_one_fate(toys: Toys, form: str, kept: Kept) -> None:
    checkpoint = Checkpoint.open(toys[form])
    moe = MoELayout.of(checkpoint)
    seen: dict[str, Any] = {}
    for layer in moe.layers.values():
        own = fates(layer, kept[layer.index])
        assert not own.keys() & seen.keys(), "two layers decide on one tensor"
        assert own.keys() == {name for name in checkpoint.tensors if name.startswith(layer.within)}
        seen |= own
    assert {type(fate) for fate in seen.values()} <= {Copy, Take, Rename, Drop}
    made = new_tensors(checkpoint, moe, kept)
    names = [tensor.name for tensor in made]
    assert len(names) == len(set(names))
    dropped = sum(checkpoint.tensors[name].nbytes for name, fate in seen.items() if isinstance(fate, Drop))
    rows_gone = sum(
        info.nbytes * (info.shape[fate.axis] - len(fate.rows)) // info.shape[fate.axis]
        for info, fate in ((checkpoint.tensors[name], fate) for name, fate in seen.items())
        if isinstance(fate, Take)
    )
    assert sum(tensor.nbytes for tensor in made) == checkpoint.nbytes - dropped - rows_gone, "bytes out = bytes kept"


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=4)
@given(kept=kept_sets(least=2))
def test_what_is_kept_is_kept_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, toys: Toys, form: str, kept: Kept
) -> None:
    output = keep(toys[form], kept, tmp_path_factory.mktemp("out") / "pruned", layout="per-layer")
    found, expected = read_tensors(output), left(toys[form], kept)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert found[name].tobytes() == value.tobytes(), name


def left(toy: Path, kept: Kept) -> dict[str, np.ndarray]:
    config = read_config(toy)
    key = architecture_of(config).num_experts_key(config)
    assert key is not None
    return what_is_left(read_tensors(toy), config, key, {layer: kept[layer] for layer in moe_layers(config)})


def test_another_expert_would_have_been_noticed(tmp_path: Path, toys: Toys) -> None:
    kept = {0: (0, 1), 1: (2, 3), 2: (4, 5)}
    found = read_tensors(keep(toys["mixtral"], kept, tmp_path / "out"))
    other = left(toys["mixtral"], {**kept, 1: (2, 4)})
    assert any(found[name].tobytes() != other[name].tobytes() for name in found)


@pytest.mark.parametrize("model_type", [each for each in MODEL_TYPES if each not in NEVER_UNIFORM])
def test_with_equal_counts_it_has_the_tensors_of_the_stock_class(tmp_path: Path, toys: Toys, model_type: str) -> None:
    pruned = keep(toys[model_type], EQUAL, tmp_path / "pruned", layout="uniform")
    expected = stock(read_config(pruned)).on_disk
    assert {name: value.shape for name, value in read_tensors(pruned).items()} == {
        name: shape for name, (_, shape) in expected.items()
    }


@pytest.mark.parametrize("form", FORMS)
def test_pruning_nothing_copies_every_byte(tmp_path: Path, toys: Toys, form: str) -> None:
    every = dict.fromkeys(range(3), tuple(range(EXPERTS)))
    keep(toys[form], every, tmp_path / "out")
    before, after = read_tensors(toys[form]), read_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)
    config, source = read_config(tmp_path / "out"), read_config(toys[form])
    added = config.pop("moeits").get("added_keys", [])
    assert not set(added) & source.keys()
    assert {key: value for key, value in config.items() if key not in added} == source


@pytest.mark.parametrize("model_type", of_each_kind(ONE_BY_ONE))
def test_storage_changes_no_score_no_plan_and_no_tensor(tmp_path: Path, toys: Toys, model_type: str) -> None:
    copies = {
        "one by one": toys[model_type],
        "in shards": reshard(toys[model_type], tmp_path / "shards", shards=4),
        "fused": toys[f"{model_type} fused"],
        "fused in shards": reshard(toys[f"{model_type} fused"], tmp_path / "fused-shards", shards=3),
    }
    evidence = {name: moeits.score(folder) for name, folder in copies.items()}
    plans = {name: moeits.plan(found, tau=0.5) for name, found in evidence.items()}
    for name, folder in copies.items():
        for layer, matrix in evidence["one by one"].redundancy.items():
            assert np.array_equal(evidence[name].redundancy[layer], matrix), "identical to the bit, not just close"
        assert plans[name].kept == plans["one by one"].kept
        assert plans[name].order == plans["one by one"].order
        assert plans[name].summary == plans["one by one"].summary
        assert_same_model(folder, toys[model_type])
        moeits.prune(folder, plan=plans[name], output=tmp_path / f"pruned {name}")
        assert_same_model(tmp_path / f"pruned {name}", tmp_path / "pruned one by one")
    assert evidence["in shards"].fingerprint == evidence["one by one"].fingerprint


# ------------------------------------------------------------------------------------- in the stock class


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("kept", [UNEVEN, EQUAL, FEW], ids=["uneven", "equal", "fewer than top_k"])
def test_a_pruned_model_computes_what_the_masked_original_computes(tmp_path: Path, model_type: str, kept: Kept) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    pruned = keep(toy, allowed(toy, kept), tmp_path / "pruned")
    original, ours = opened(toy), loaded(pruned)
    with routers_masked(original, allowed(toy, kept), EXPERTS, EXTRA_ROWS.get(model_type, 0)):
        expected, expected_text = logits(original, TOKENS), continuation(original, TOKENS)
    assert furthest(logits(ours, TOKENS), expected) < TOLERANCE
    assert torch.equal(continuation(ours, TOKENS), expected_text)
    remote = opened(pruned, trust_remote_code=kept is not EQUAL or model_type in NEVER_UNIFORM)
    assert_same(remote, ours)
    assert type(remote).__name__ == type(original).__name__


@pytest.mark.parametrize("model_type", of_each_kind(MODEL_TYPES))
def test_removing_another_expert_computes_something_else(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    ours = loaded(keep(toy, UNEVEN, tmp_path / "pruned"))
    original, other = opened(toy), {**UNEVEN, 1: (1, 5)}
    with routers_masked(original, allowed(toy, other), EXPERTS, EXTRA_ROWS.get(model_type, 0)):
        assert furthest(logits(ours, TOKENS), logits(original, TOKENS)) > 100 * TOLERANCE


@pytest.mark.parametrize("model_type", of_each_kind(MODEL_TYPES))
def test_it_writes_on_with_its_cache_as_without(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    ours = loaded(keep(toy, UNEVEN, tmp_path / "pruned"))
    alike = torch.equal(continuation(ours, TOKENS), continuation_without_cache(ours, TOKENS))
    if model_type in CACHE_OF_ANOTHER_MODEL:
        original = opened(toy)
        assert not torch.equal(continuation(original, TOKENS), continuation_without_cache(original, TOKENS))
    assert alike == (model_type not in CACHE_OF_ANOTHER_MODEL)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_as_few_experts_as_its_router_needs_are_kept_but_no_fewer(tmp_path: Path, toys: Toys, model_type: str) -> None:
    config = read_config(toys[model_type])
    least = architecture_of(config).least_per_group(config)
    keep(toys[model_type], dict.fromkeys(range(3), tuple(range(least))), tmp_path / "out")
    if least > 1:
        with pytest.raises(PlanError, match=f"needs {least} experts; this plan keeps {least - 1}"):
            keep(toys[model_type], dict.fromkeys(range(3), tuple(range(least - 1))), tmp_path / "fewer")


@pytest.mark.parametrize("budget", [{"tau": 0.0}, {"experts_per_layer": 4}], ids=["tau", "count"])
@pytest.mark.parametrize("model_type", ["deepseek_v3", "dots1", "glm4_moe"])
def test_groups_judged_by_their_best_two_compute_what_the_masked_original_computes(
    tmp_path: Path, model_type: str, budget: dict[str, Any]
) -> None:
    made = make_toy(tmp_path / "made", model_type, dtype="float32", experts=8, n_group=2, topk_group=1)
    # In an original whose removed experts are masked, a negative score loses to the 0 of a group that was not chosen.
    tensors = {name: abs(value) if "correction_bias" in name else value for name, value in read_tensors(made).items()}
    toy = write_checkpoint(tmp_path / "toy", read_config(made), tensors)
    plan = moeits.simplify(toy, output=tmp_path / "pruned", **budget)
    assert plan.summary["experts_kept"] < plan.summary["experts_before"]
    assert all(sum(expert < 4 for expert in kept) * 2 == len(kept) >= 4 for kept in plan.kept.values())
    original = opened(toy)
    with routers_masked(original, plan.kept, 8):
        expected = logits(original, TOKENS)
    assert furthest(logits(loaded(tmp_path / "pruned"), TOKENS), expected) < TOLERANCE


@pytest.mark.parametrize("model_type", of_each_kind([each for each in MODEL_TYPES if each not in NEVER_UNIFORM]))
def test_an_uneven_plan_can_be_evened_out_for_stock_loaders(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "pruned", layout="uniform")
    assert len(set(map(len, plan.kept.values()))) == 1
    original = opened(toy)
    with routers_masked(original, plan.kept, EXPERTS, EXTRA_ROWS.get(model_type, 0)):
        expected = logits(original, TOKENS)
    assert furthest(logits(opened(tmp_path / "pruned"), TOKENS), expected) < TOLERANCE
    assert not list((tmp_path / "pruned").glob("*.py"))


@pytest.mark.parametrize("model_type", of_each_kind(ONE_BY_ONE))
def test_a_fused_checkpoint_loads_as_its_per_expert_twin_does(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    one = loaded(keep(toy, UNEVEN, tmp_path / "one"))
    other = loaded(keep(fuse(toy, tmp_path / "fused"), UNEVEN, tmp_path / "other"))
    assert_same(one, other)


@pytest.mark.parametrize("model_type", of_each_kind(MODEL_TYPES))
def test_what_was_loaded_can_be_saved_and_loaded_again(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    ours = loaded(keep(toy, UNEVEN, tmp_path / "pruned"))
    ours.save_pretrained(tmp_path / "saved")
    assert_same(loaded(tmp_path / "saved"), ours)
    assert_same(opened(tmp_path / "saved", trust_remote_code=True), ours)


@pytest.mark.parametrize("model_type", of_each_kind(MODEL_TYPES))
def test_training_it_reaches_each_of_its_routers(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    model = loaded(keep(toy, UNEVEN, tmp_path / "pruned")).train()
    widths = {layer: len(ids) for layer, ids in allowed(toy, UNEVEN).items()}
    routers = routers_of(model, widths, EXTRA_ROWS.get(model_type, 0))
    assert len(routers) == len(widths)
    # One that tells kinds of tokens apart has fewer of them than there are tokens.
    labels = TOKENS % logits(model, TOKENS).shape[-1]
    model(input_ids=TOKENS, labels=labels, output_router_logits=True).loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in routers.values())
