"""Experts rounded to few bits: an exact allocation, numbers on a grid, and the file that a quantizer reads."""

import json
import re
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import moeits
from moeits.calibration.settings import Tokens
from moeits.calibration.texts import windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.edits.quantize import Quantize, group_of, least_cost, rounded
from moeits.errors import OutputError, PlanError, SettingError
from moeits.evidence import Evidence
from moeits.experts.layout import MoELayout
from moeits.progress import silent
from moeits.runtime import need
from moeits.signals.watched import ROUNDING_BITS, rounding_error
from tests.evaluation_toys import give_tokenizer
from tests.toys import assert_all_but_experts_are_alike, fuse, make_toy, read_tensors

SMALL: dict[str, Any] = {"tokens": 512, "held_out": 256, "window": 32, "device": "cpu", "selection": 0}


# -------------------------------------------------------------------------------------------------------- allocation


def by_trying_all(costs: np.ndarray, widths: tuple[int, ...], budget: int) -> tuple[float, set[tuple[int, ...]]]:
    """All allocations of least cost, of those that meet the budget and have both of the largest widths."""
    found: dict[tuple[int, ...], float] = {}
    for chosen in product(widths, repeat=len(costs)):
        if sum(chosen) <= budget and {widths[-1], widths[-2]} <= set(chosen):
            total = 0.0
            for row, bits in zip(costs, chosen, strict=True):
                total += float(row[widths.index(bits)])
            found[chosen] = total
    least = min(found.values(), default=np.inf)
    return least, {chosen for chosen, cost in found.items() if cost == least}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("budget", [8, 9, 11, 13, 17, 18])
def test_the_dynamic_programme_finds_what_trying_all_finds(seed: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.random((6, 3)) if seed % 2 else np.sort(rng.random((6, 3)), axis=1)[:, ::-1]
    costs = np.round(costs, 1) if seed % 3 == 0 else costs  # ties
    _, best = by_trying_all(costs, (1, 2, 3), budget)
    found = least_cost(costs, (1, 2, 3), budget)
    if not best:
        assert found is None
        return
    assert found in best
    assert sum(found) <= budget


@pytest.mark.parametrize("budget", range(9, 19))
def test_equal_experts_share_bits_as_evenly_as_may_be(budget: int) -> None:
    costs = np.tile([1.0, 0.3, 0.1], (6, 1))
    found = least_cost(costs, (1, 2, 3), budget)
    assert found is not None
    counts = [found.count(bits) for bits in (1, 2, 3)]
    assert min(counts[1:]) >= 1
    # Convex costs: no expert has 1 bit and two others 3, but for the one 3 that there must be.
    assert counts[0] == 0 or counts[2] == 1


def test_a_layer_without_room_for_both_widths_has_no_allocation() -> None:
    assert least_cost(np.ones((2, 3)), (1, 2, 3), 4) is None
    assert least_cost(np.ones((2, 3)), (1, 2, 3), 5) in {(2, 3), (3, 2)}
    assert least_cost(np.array([[3.0, 2.0, 1.0]]), (1, 2, 3), 3) == (3,)


# ---------------------------------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(5, 256), (4, 48), (3, 12)])
def test_numbers_are_the_nearest_of_as_many_as_bits_allow(bits: int, shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    group = group_of(shape[1])
    assert group == {256: 128, 48: 16, 12: 12}[shape[1]]
    made = rounded(weight, bits)
    for row, new in zip(weight.reshape(-1, group), made.reshape(-1, group), strict=True):
        grid = np.unique(new)
        assert len(grid) <= 2**bits
        if bits == 1:
            np.testing.assert_allclose(new, np.where(row < 0, -1, 1) * np.abs(row).mean(), rtol=1e-6)
            continue
        step = (max(row.max(), 0) - min(row.min(), 0)) / (2**bits - 1)
        assert np.abs(new - row).max() <= step * 1.001  # half a step, and half of one at the ends, where 0 is kept
        assert np.abs(new - row).mean() <= step / 2
        assert np.allclose(new / step, np.rint(new / step), atol=1e-4)
    assert not rounded(np.zeros(shape, np.float32), bits).any()


def test_more_bits_are_nearer() -> None:
    weight = np.random.default_rng(3).standard_normal((20, 128)).astype(np.float32)
    errors = [float(np.linalg.norm(rounded(weight, bits) - weight)) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)


# ------------------------------------------------------------------------------------------ errors, watched on tokens


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evidence]:
    folder = make_toy(tmp_path_factory.mktemp("watched") / "toy", dtype="float32")
    give_tokenizer(folder)
    return folder, moeits.calibrate(folder, rounding_errors=True, **SMALL)


def test_errors_are_those_of_the_stock_layer_with_one_expert_rounded(watched: tuple[Path, Evidence]) -> None:
    folder, evidence = watched
    tokens = windows_of(Checkpoint.open(folder), Tokens(tokens=512, held_out=256, window=32), silent).watched
    model = need("transformers", extra="load").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    calls: dict[int, list[Any]] = {}
    for i, layer in enumerate(model.model.layers):
        layer.mlp.experts.register_forward_hook(
            lambda module, args, kwargs, out, i=i: calls.setdefault(i, []).append((*args, *kwargs.values())),  # noqa: ARG005
            with_kwargs=True,
        )
    with torch.no_grad():
        for window in torch.from_numpy(tokens):
            model(input_ids=window[None], use_cache=False)
        for i, layer in enumerate(model.model.layers):
            experts, of_layer = layer.mlp.experts, list(calls[i])
            before = [experts(*call) for call in of_layer]
            for bits in (1, 3):
                for e in (0, 4):
                    own = [getattr(experts, name)[e].clone() for name in ("gate_up_proj", "down_proj")]
                    for name, weight in zip(("gate_up_proj", "down_proj"), own, strict=True):
                        getattr(experts, name)[e] = torch.from_numpy(rounded(weight.numpy(), bits))
                    change = sum(
                        float((experts(*call) - old).double().square().sum())
                        for call, old in zip(of_layer, before, strict=True)
                    )
                    for name, weight in zip(("gate_up_proj", "down_proj"), own, strict=True):
                        getattr(experts, name)[e] = weight
                    assert evidence.signals[rounding_error(bits)][i][e] == pytest.approx(change**0.5, rel=1e-4)
    for i in evidence.layers:
        of = [evidence.signals[rounding_error(bits)][i] for bits in ROUNDING_BITS]
        # Of an expert alone 2 bits can be worse than 1, whose size is the mean and not the largest.
        assert all(more.sum() < less.sum() for less, more in pairwise(of))


def test_a_plan_meets_its_bits_by_the_published_cost_and_replays(
    watched: tuple[Path, Evidence], tmp_path: Path
) -> None:
    toy, evidence = watched
    asked = {"criterion": "reap", "experts_per_layer": 4, "edit": "quantize"}
    plan = moeits.plan(evidence, bits=2.25, output=tmp_path / "plan.json", **asked)
    assert plan.edit is not None
    for layer, kept in plan.kept.items():
        chosen, gates = (evidence.signals[name][layer][list(kept)] for name in ("frequency", "router-score"))
        errors = np.stack([evidence.signals[rounding_error(bits)][layer][list(kept)] for bits in (1, 2, 3)], axis=1)
        costs = (chosen / chosen.sum() * (gates / gates.sum()) ** 1.5)[:, None] * errors**2
        _, best = by_trying_all(costs, (1, 2, 3), 9)
        assert tuple(plan.edit.details[layer][expert]["bits"] for expert in kept) in best
    moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "one")
    moeits.simplify(toy, bits=2.25, output=tmp_path / "line", tokens=512, held_out=256, window=32, **asked)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "line" / "model.safetensors"
    ).read_bytes()
    small = {name: value for name, value in SMALL.items() if name != "selection"}
    assert moeits.refit(tmp_path / "one", parent=toy, output=tmp_path / "refitted", **small).layers


@pytest.mark.parametrize("bits", [2.5, 2.6, 2.9])
def test_bits_are_never_more_than_were_asked_for(watched: tuple[Path, Evidence], bits: float) -> None:
    plan = moeits.plan(watched[1], criterion="reap", experts_per_layer=3, edit="quantize", bits=bits)
    assert plan.edit is not None
    for of_layer in plan.edit.details.values():
        assert sum(detail["bits"] for detail in of_layer.values()) <= 3 * bits


def test_a_float_that_is_a_whole_number_of_bits_all_but_its_last_digit_is_that_number() -> None:
    for experts, total in product(range(1, 65), range(1, 513)):
        if experts <= total <= 8 * experts:
            assert Quantize(bits=total / experts).budget(experts) == total


def test_a_single_width_is_met_without_bits_and_not_by_fewer_that_were_given() -> None:
    for width in range(1, 9):
        made = Quantize(bit_widths=str(width))
        assert made.most == made.bits_of({}) == width
        assert made.needs == ()
    assert Quantize().most == 2.5
    with pytest.raises(SettingError, match=r"--bits 2.5 is met by no width of --bit-widths 3"):
        Quantize(bits=2.5, bit_widths="3")


@pytest.mark.parametrize("form", ["qwen2_moe", "qwen2_moe fused", "gpt_oss"])
def test_every_matrix_of_a_kept_expert_is_rounded_and_all_else_has_its_bytes(form: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", form.removesuffix(" fused"))
    toy = fuse(toy, tmp_path / "fused") if form.endswith("fused") else toy
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="quantize", bit_widths="3")
    moeits.prune(toy, plan=plan, output=tmp_path / "made")
    moeits.prune(toy, plan=replace(plan, edit=None), output=tmp_path / "plain")
    made, plain = Checkpoint.open(tmp_path / "made"), Checkpoint.open(tmp_path / "plain")
    layout = MoELayout.of(made)
    for layer in layout.layers:
        for expert in range(3):
            for projection in ("gate", "up", "down"):
                new, old = (layout.read(each, layer, expert, projection) for each in (made, plain))
                assert np.array_equal(new, rounded(old.astype(np.float32), 3).astype(old.dtype))
                assert not np.array_equal(new, old)
    assert_all_but_experts_are_alike(tmp_path / "made", tmp_path / "plain")


# -------------------------------------------------------------------------------------------------- for a quantizer


def test_bits_are_written_for_a_quantizer_under_the_numbers_of_the_output(
    watched: tuple[Path, Evidence], tmp_path: Path
) -> None:
    toy, evidence = watched
    plan = moeits.plan(evidence, criterion="reap", experts_per_layer=4, edit="quantize", bits=2.75, bit_widths="2,3,4")
    for name in ("bits.json", "bits.yaml"):
        moeits.prune(toy, plan=plan, output=tmp_path / name.replace(".", "-"), write_bits=tmp_path / name)
    dynamic = json.loads((tmp_path / "bits.json").read_text())["dynamic"]
    groups = yaml.safe_load((tmp_path / "bits.yaml").read_text())["quant_stage"]["quant_modifiers"]["GPTQModifier"]
    assert plan.edit is not None
    linears = [name.removesuffix(".weight") for name in read_tensors(tmp_path / "bits-json") if "proj.weight" in name]
    for linear in linears:
        found = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.\w+", linear)
        own = {how["bits"] for key, how in dynamic.items() if re.match(key.removeprefix("+:"), linear)}
        others = {
            group["weights"]["num_bits"]
            for group in groups["config_groups"].values()
            if any(re.match(target.removeprefix("re:"), linear) for target in group["targets"])
        }
        if found is None:
            assert own == others == set(), linear
        else:
            layer, number = map(int, found.groups())
            assert own == others == {plan.edit.details[layer][plan.kept[layer][number]]["bits"]}


@pytest.mark.parametrize("form", ["mixtral", "phimoe"])
def test_bits_are_found_by_the_names_on_disk_and_in_memory(form: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", form)
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="quantize", bit_widths="3")
    moeits.prune(toy, plan=plan, output=tmp_path / "out", write_bits=tmp_path / "bits.json")
    dynamic = json.loads((tmp_path / "bits.json").read_text())["dynamic"]
    stored = [name.removesuffix(".weight") for name in read_tensors(tmp_path / "out") if ".experts." in name]
    assert any(".block_sparse_moe." in name for name in stored)
    memory = [name.replace("block_sparse_moe", "mlp") for name in stored]
    for old, new in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        memory = [re.sub(rf"\b{old}$", new, name) for name in memory]
    for name in (*stored, *memory):
        assert sum(bool(re.match(key.removeprefix("+:"), name)) for key in dynamic) == 1, name
    assert not any(re.match(key.removeprefix("+:"), "model.layers.0.mlp.gate") for key in dynamic)


@pytest.mark.parametrize(("width", "groups"), [(12, {32, -1}), (48, {32, 16}), (64, {32, 64}), (32, {32})])
def test_the_groups_that_are_written_are_those_that_were_rounded(width: int, groups: set[int], tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "mixtral", layers=1, intermediate_size=width)
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="quantize", bit_widths="3")
    for name in ("bits.json", "bits.yaml"):
        moeits.prune(toy, plan=plan, output=tmp_path / name.replace(".", "-"), write_bits=tmp_path / name)
    dynamic = json.loads((tmp_path / "bits.json").read_text())["dynamic"]
    recipe = yaml.safe_load((tmp_path / "bits.yaml").read_text())["quant_stage"]["quant_modifiers"]["GPTQModifier"]
    assert {how["group_size"] for how in dynamic.values()} == groups
    for name, tensor in read_tensors(tmp_path / "bits-json").items():
        linear, inputs = name.removesuffix(".weight"), tensor.shape[-1]
        by_key = [how["group_size"] for key, how in dynamic.items() if re.match(key.removeprefix("+:"), linear)]
        by_target = [
            each["weights"].get("group_size", -1)
            for each in recipe["config_groups"].values()
            if any(re.match(target.removeprefix("re:"), linear) for target in each["targets"])
        ]
        wanted = [-1 if inputs == 12 else group_of(inputs)] if ".experts." in name else []
        assert by_key == by_target == wanted, name


@pytest.mark.parametrize("width", [1, 5, 6, 7])
def test_a_width_that_quantizers_do_not_have_is_one_sentence(width: int, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", layers=1)
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="quantize", bit_widths=str(width))
    with pytest.raises(SettingError, match=f"no width of {width} bits?, which .*: plan with --bit-widths 2,3,4 or 8"):
        moeits.prune(toy, plan=plan, output=tmp_path / "out", write_bits=tmp_path / "bits.yaml")
    assert not list(tmp_path.glob("bits*"))


def test_bits_that_no_quantizer_can_read_are_refused_and_nothing_is_written(
    watched: tuple[Path, Evidence], tmp_path: Path
) -> None:
    toy, evidence = watched
    asked = {"criterion": "reap", "experts_per_layer": 4}
    low = moeits.plan(evidence, edit="quantize", bits=2, **asked)
    plain = moeits.plan(evidence, **asked)
    fused = moeits.plan(
        moeits.score(make_toy(tmp_path / "gpt", "gpt_oss")),
        experts_per_layer=3,
        edit="quantize",
        bits=3,
        bit_widths="3",
    )
    for model, plan, name, sentence in (
        (toy, low, "bits.json", "no width of 1 bit, which this plan gives to some experts: plan with --bit-widths 2,3"),
        (toy, plain, "bits.json", "--write-bits writes what --edit quantize decides, and this plan has none"),
        (toy, low, "bits.txt", "--write-bits bits.txt is neither .json"),
        (tmp_path / "gpt", fused, "bits.json", "the experts of gpt_oss are fused"),
    ):
        with pytest.raises(SettingError, match=sentence):
            moeits.prune(model, plan=plan, output=tmp_path / "out", write_bits=tmp_path / name)
    with pytest.raises(OutputError):
        moeits.prune(toy, plan=low, output=tmp_path / "out", write_bits=toy / "config.json")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("bits.*"))


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"bits": 0.5}, "--bits 0.5 is met by no width of --bit-widths 1,2,3: give a number from 1 to 8"),
        ({"bits": 9}, "--bits 9 is met by no width"),
        ({"bits": float("nan")}, "--bits nan is met by no width"),
        ({"bits": 1.5, "bit_widths": "2,3"}, "--bits 1.5 is met by no width of --bit-widths 2,3: give a number from 2"),
        ({"bit_widths": "2,5"}, "--bit-widths '2,5' is out of range: it is one number from 1 to 8, or several of 1, 2"),
        ({"bit_widths": "few"}, "--bit-widths 'few' is out of range"),
        ({"bit_widths": ""}, "--bit-widths '' is out of range"),
        ({"bit_widths": "9"}, "--bit-widths '9' is out of range"),
    ],
)
def test_bits_that_no_width_meets_are_one_sentence(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        Quantize(**asked)


def test_bits_that_leave_no_room_and_plans_that_were_changed_are_refused(
    watched: tuple[Path, Evidence], tmp_path: Path
) -> None:
    toy, evidence = watched
    asked = {"criterion": "reap", "experts_per_layer": 4, "edit": "quantize"}
    with pytest.raises(
        SettingError, match=r"--bits 1.5 cannot be met in layer 0: of 4 experts one has 3 bits and one 2"
    ):
        moeits.plan(evidence, bits=1.5, **asked)
    with pytest.raises(SettingError, match=r"needs rounding-error-1 .* calibrate the model with --rounding-errors"):
        moeits.plan(moeits.calibrate(toy, **SMALL), **asked)
    moeits.plan(evidence, bits=2, output=tmp_path / "plan.json", **asked)
    text = json.loads((tmp_path / "plan.json").read_text())
    for bits in (0, 9, 2.5, "2", True):
        expert = next(iter(text["edit"]["details"]["0"]))
        text["edit"]["details"]["0"][expert]["bits"] = bits
        (tmp_path / "plan.json").write_text(json.dumps(text))
        with pytest.raises(PlanError, match="The bits of an expert in `edit` are not a number from 1 to 8"):
            moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
