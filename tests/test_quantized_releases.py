"""Releases in four and eight bits are scored by what they mean, and pruned with all that belongs to an expert."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import CheckpointError
from moeits.experts.layout import MoELayout
from moeits.measurement.files import parameters_of, sparsity_of
from tests.masked import TOLERANCE, logits, routers_masked
from tests.packed import raw_tensors, write_packed
from tests.quantizers import QUANTIZERS, quantized_copy
from tests.toys import make_toy, num_experts, read_config

WIDE = {"hidden_size": 64, "moe_intermediate_size": 64}
KEPT = {0: (0, 3, 5), 1: (1, 2, 4)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("bf16") / "toy", "qwen3_moe", layers=2, **WIDE)


@pytest.fixture(scope="module", params=QUANTIZERS)
def copies(request, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The name of a form, a toy in it, and the same numbers as they are."""
    return request.param, *quantized_copy(toy, tmp_path_factory.mktemp("copies"), request.param)


@pytest.fixture(scope="module")
def plan(toy: Path) -> PruningPlan:
    """Of the model in bf16, with sets that move numbers."""
    return replace(moeits.plan(moeits.score(toy), experts_per_layer=3), kept=KEPT, order={})


def test_scores_are_those_of_the_numbers_that_the_quantizer_means(copies: tuple[str, Path, Path]) -> None:
    _, packed, plain = copies
    ours, theirs = moeits.score(packed), moeits.score(plain)
    assert all(np.array_equal(r, theirs.redundancy[layer]) for layer, r in ours.redundancy.items())
    assert moeits.plan(ours, tau=0.5).kept == moeits.plan(theirs, tau=0.5).kept


def test_everything_of_an_expert_goes_with_it_as_bytes(
    copies: tuple[str, Path, Path], plan: PruningPlan, tmp_path: Path
) -> None:
    """Under a plan that was made in bf16."""
    _, packed, _ = copies
    moeits.prune(packed, plan=plan, output=tmp_path / "out", any_fingerprint=True)
    before, after = raw_tensors(packed), raw_tensors(tmp_path / "out")
    wanted = {}
    for name, value in before.items():
        inside, _, rest = name.partition(".mlp.experts.")
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else -1
        if name.endswith("mlp.gate.weight"):
            wanted[name] = value[list(KEPT[layer])]
        elif not rest:
            wanted[name] = value
        elif (expert := int(rest.split(".")[0])) in KEPT[layer]:
            new = KEPT[layer].index(expert)
            wanted[f"{inside}.mlp.experts.{new}.{rest.partition('.')[2]}"] = value
    assert after.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (value.dtype, value.shape) == (after[name].dtype, after[name].shape), name
        assert torch.equal(value.reshape(-1).view(torch.uint8), after[name].reshape(-1).view(torch.uint8)), name


def test_a_release_has_as_many_parameters_as_what_it_stands_for(
    copies: tuple[str, Path, Path], plan: PruningPlan, tmp_path: Path
) -> None:
    """Words, scales and tables are not counted, so that sizes of all releases can be compared."""
    _, packed, plain = copies
    ours, theirs = moeits.inspect(packed), moeits.inspect(plain)
    assert (ours.parameters, ours.routed_parameters) == (theirs.parameters, theirs.routed_parameters)
    assert ours.nbytes < theirs.nbytes
    done = {
        folder: moeits.prune(folder, plan=plan, output=tmp_path / folder.name, any_fingerprint=True)
        for folder in (packed, plain)
    }
    of_both = ("parameters_before", "parameters_after", "reduction", "reduction_of_all")
    assert len({tuple(made.summary[key] for key in of_both) for made in done.values()}) == 1
    assert moeits.inspect(tmp_path / packed.name).parameters == done[packed].summary["parameters_after"]


@pytest.mark.parametrize("model_type", ["inkling_text", "zaya"])
def test_rows_of_a_router_that_are_of_no_expert_are_not_counted_as_experts(model_type: str, tmp_path: Path) -> None:
    """In a quantized release as in the model in bf16; its router is in bf16 in both."""
    toy = make_toy(tmp_path / "toy", model_type)
    quantization = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}
    packed = write_packed(tmp_path / "packed", read_config(toy) | quantization, raw_tensors(toy))
    ours, theirs = (MoELayout.of(Checkpoint.open(folder)) for folder in (packed, toy))
    assert [moe.sizes for moe in ours.layers.values()] == [moe.sizes for moe in theirs.layers.values()]
    plan = moeits.simplify(packed, experts_per_layer=4, output=tmp_path / "out")
    assert plan.summary["parameters_after"] == moeits.inspect(tmp_path / "out").parameters


def test_a_footprint_counts_of_a_release_what_it_stands_for(copies: tuple[str, Path, Path]) -> None:
    _, packed, plain = copies
    ours, theirs = (parameters_of(opened, MoELayout.of(opened)) for opened in map(Checkpoint.open, (packed, plain)))
    assert ours == theirs
    assert sparsity_of(Checkpoint.open(packed)) is None


def test_the_quantizers_settings_are_kept_and_the_card_names_whose_plan_it_was(
    toy: Path, copies: tuple[str, Path, Path], plan: PruningPlan, tmp_path: Path
) -> None:
    name, packed, _ = copies
    moeits.prune(packed, plan=plan, output=tmp_path / "out", any_fingerprint=True)
    assert read_config(tmp_path / "out")["quantization_config"] == QUANTIZERS[name].config
    for file, content in QUANTIZERS[name].beside.items():
        assert json.loads((tmp_path / "out" / file).read_text()) == content
    card = " ".join((tmp_path / "out/README.md").read_text().split())
    assert "The experts were chosen for toy, another form of this model" in card
    assert f"quantized by `{QUANTIZERS[name].config['quant_method']}`" in card
    moeits.prune(toy, plan=plan, output=tmp_path / "parent")
    parents = (tmp_path / "parent/README.md").read_text()
    assert "quantized" not in parents
    assert "another form" not in parents


OPENED = [name for name in QUANTIZERS if name.startswith("compressed-tensors") and "asymmetric" not in name]


@pytest.mark.parametrize("form", OPENED)
def test_a_stock_loader_opens_what_was_pruned_of_compressed_tensors_and_computes_the_masked_release(
    toy: Path, plan: PruningPlan, tmp_path: Path, form: str
) -> None:
    """transformers dequantizes it where there is no GPU; in float32 afterwards only the order of sums differs."""
    packed, plain = quantized_copy(toy, tmp_path, form)
    moeits.prune(packed, plan=plan, output=tmp_path / "out", any_fingerprint=True)
    original, pruned, numbers = (
        torch.nn.Module.float(moeits.load(folder, dtype=torch.bfloat16)) for folder in (packed, tmp_path / "out", plain)
    )
    as_meant = all(torch.equal(value, numbers.state_dict()[name]) for name, value in original.state_dict().items())
    # transformers 5.23 leaves the scale of a whole weight out where it fuses experts, pruned or not.
    assert as_meant == ("nvfp4" not in form)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with routers_masked(original, plan.kept, num_experts(read_config(packed))):
        wanted = logits(original, tokens)
    allowed = TOLERANCE * wanted.abs().max()
    assert (logits(pruned, tokens) - wanted).abs().max() <= allowed
    assert (logits(original, tokens) - wanted).abs().max() > 10 * allowed


def test_a_stock_loader_opens_no_integers_with_zero_points_pruned_or_not(toy: Path, tmp_path: Path) -> None:
    """transformers 5.23 asks for the zero points of experts that it has fused without them."""
    packed, _ = quantized_copy(toy, tmp_path, "compressed-tensors int4, asymmetric")
    with pytest.raises(CheckpointError, match="cannot be opened by transformers"):
        moeits.load(packed, dtype=torch.bfloat16)
