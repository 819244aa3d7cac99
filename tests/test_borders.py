"""What a quantizer keeps for several experts is cut where it can be, kept where it is of all, and refused otherwise."""

from pathlib import Path

import pytest
import torch

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError
from moeits.experts.layout import MoELayout
from tests.packed import packed_copies, raw_tensors, write_packed
from tests.toys import fuse, make_toy, read_config

EXPERTS, KEEP = 6, 3
ROUTER = "mlp.gate.weight"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "toy", "qwen3_moe", experts=EXPERTS, layers=2)


def changed(toy: Path, suffix: str, *, drop: bool = False, **beside: torch.Tensor) -> Path:
    """A toy with tensors beside those that end in `suffix`, under its name up to the last dot."""
    tensors = raw_tensors(toy)
    for name in [name for name in tensors if name.endswith(suffix)]:
        stem = name.removesuffix("weight")
        tensors |= {stem + part.replace("__", "."): value.clone() for part, value in beside.items()}
        if drop:
            del tensors[name]
    return write_packed(toy.with_name("changed"), read_config(toy), tensors)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        moeits.score(folder)
    assert "cannot be cut at their borders" in str(error.value)
    return str(error.value)


def test_a_router_in_words_along_the_experts_is_refused_and_not_called_missing(toy: Path) -> None:
    words = {"qweight": torch.zeros(4, EXPERTS, dtype=torch.int32), "qzeros": torch.zeros(1, 1, dtype=torch.int32)}
    sentence = refusal(changed(toy, ROUTER, drop=True, **words))
    assert sentence.startswith("model.layers.0.mlp.gate.qweight has numbers of several experts in one")


def test_a_router_in_one_pile_of_codes_is_refused(toy: Path) -> None:
    pile = {"weight": torch.zeros(96, 1, dtype=torch.uint8), "weight__absmax": torch.ones(3)}
    assert refusal(changed(toy, ROUTER, **pile)).startswith("model.layers.0.mlp.gate.weight.absmax")


def test_a_router_with_scales_over_several_rows_is_refused(toy: Path) -> None:
    assert refusal(changed(toy, ROUTER, weight_scale_inv=torch.ones(1, 1, 2))).startswith(
        "model.layers.0.mlp.gate.weight_scale_inv"
    )


def test_scales_of_a_routers_rows_go_with_them_and_one_of_all_stays(toy: Path, tmp_path: Path) -> None:
    rows = torch.arange(EXPERTS).float()[:, None]
    folder = changed(toy, ROUTER, weight_scale=rows, input_scale=torch.tensor(0.5))
    plan = moeits.plan(moeits.score(folder), experts_per_layer=KEEP)
    moeits.prune(folder, plan=plan, output=tmp_path / "out")
    after = raw_tensors(tmp_path / "out")
    for layer, kept in plan.kept.items():
        assert after[f"model.layers.{layer}.mlp.gate.weight_scale"].flatten().tolist() == [*map(float, kept)]
        assert after[f"model.layers.{layer}.mlp.gate.input_scale"].item() == 0.5


def test_fused_experts_in_one_pile_of_codes_are_refused_with_the_reason(toy: Path, tmp_path: Path) -> None:
    """As bitsandbytes keeps a parameter of three axes."""
    tensors = raw_tensors(fuse(toy, tmp_path / "fused"))
    for name in [name for name in tensors if ".experts." in name]:
        entries = tensors[name].numel()
        tensors[name] = torch.zeros(entries // 2, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"] = torch.ones(entries // 64)
    folder = write_packed(tmp_path / "packed", read_config(toy), tensors)
    assert f"for {EXPERTS} experts" in refusal(folder)


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_one_number_for_all_fused_experts_stays_as_it_is(toy: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = raw_tensors(fuse(toy, tmp_path / "fused"))
    scales = {f"{name}_input_scale": torch.full(shape, 0.25) for name in tensors if ".experts." in name}
    folder = write_packed(tmp_path / "scaled", read_config(toy), {**tensors, **scales})
    plan = moeits.plan(moeits.score(folder), experts_per_layer=KEEP)
    moeits.prune(folder, plan=plan, output=tmp_path / "out")
    after = raw_tensors(tmp_path / "out")
    assert len(scales) == 4
    assert all(torch.equal(after[name], value) for name, value in scales.items())
    assert all(len(after[name.removesuffix("_input_scale")]) == KEEP for name in scales)


@pytest.mark.parametrize("shape", [(), (1,), (EXPERTS,)], ids=str)
def test_a_scale_beside_a_single_fused_expert_is_its_own_whether_it_was_one_of_all_or_of_each(
    toy: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Shapes do not tell the two apart; the output is taken, and says what it weighs, in either case."""
    tensors = raw_tensors(fuse(toy, tmp_path / "fused"))
    scales = {f"{name}_scale": torch.rand(shape) for name in tensors if ".experts." in name}
    folder = write_packed(tmp_path / "scaled", read_config(toy), {**tensors, **scales})
    plan = moeits.simplify(folder, criterion="random", experts_per_layer=1, min_experts=1, output=tmp_path / "out")
    after = raw_tensors(tmp_path / "out")
    for name, value in scales.items():
        kept = plan.kept[int(name.split(".")[2])]
        assert torch.equal(after[name], value[list(kept)] if shape == (EXPERTS,) else value)
    found = moeits.inspect(tmp_path / "out")
    assert (found.parameters, found.nbytes) == (plan.summary["parameters_after"], plan.summary["bytes_after"])


@pytest.mark.parametrize("experts", [EXPERTS, 2])
@pytest.mark.parametrize("form", ["fp8", "mxfp4"])
def test_fused_codes_are_cut_to_a_single_expert_that_weighs_and_means_what_it_did(
    tmp_path: Path, form: str, experts: int
) -> None:
    """And it is read again: one of one expert is fused as one of many is."""
    toy = make_toy(tmp_path / "toy", "gpt_oss", experts=experts, layers=2, intermediate_size=32)
    folder, out = packed_copies(toy, tmp_path)[form], tmp_path / "out"
    plan = moeits.simplify(folder, criterion="random", seed=1, experts_per_layer=1, min_experts=1, output=out)
    before, after = Checkpoint.open(folder), Checkpoint.open(out)
    layout, left = MoELayout.of(before), MoELayout.of(after)
    for layer, (expert,) in plan.kept.items():
        assert {after.tensors[name].shape[0] for name in left.layers[layer].fused.values()} == {1}
        for projection in layout.architecture.projection_names:
            ours, theirs = left.read(after, layer, 0, projection), layout.read(before, layer, expert, projection)
            assert ours.tobytes() == theirs.tobytes()
    found, whole = moeits.inspect(out), moeits.inspect(folder)
    assert whole.routed_parameters is not None
    assert found.routed_parameters == whole.routed_parameters // experts
    assert (found.parameters, found.nbytes) == (plan.summary["parameters_after"], plan.summary["bytes_after"])
    assert moeits.score(out).redundancy[0].shape == (1, 1)
