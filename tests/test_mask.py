"""Zeros in the rows of kept experts: as many as asked for, where |W| times the norm of the input is smallest."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moeits
from moeits.calibration.settings import Tokens
from moeits.calibration.texts import windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing import pruning_plan
from moeits.choosing.pruning_plan import PruningPlan
from moeits.edits import PlannedEdit
from moeits.edits.mask import Mask
from moeits.errors import PlanError, SettingError
from moeits.evidence import Evidence
from moeits.experts.layout import MoELayout
from moeits.progress import silent
from moeits.runtime import need
from moeits.signals.watched import INPUT_NORMS
from moeits.typed_json import MOST_BYTES as MOST_BYTES_OF_JSON
from tests.evaluation_toys import give_tokenizer
from tests.toys import HIDDEN, WIDTH, assert_all_but_experts_are_alike, fuse, make_toy

SMALL: dict[str, Any] = {"tokens": 512, "held_out": 256, "window": 32, "device": "cpu", "selection": 0}


def detail(rng: np.random.Generator) -> dict[str, str]:
    """What a plan says of an expert, of random norms."""
    known = {"gated-input-norm": {0: rng.random((1, HIDDEN)) + 0.01}, "gated-neuron-norm": {0: rng.random((1, WIDTH))}}
    evidence = Evidence(inventory=None, signals=known)  # type: ignore[arg-type]
    return dict(Mask().details(evidence, 0, (0,))[0])


def norms_of(known: dict[str, str], part: str) -> np.ndarray:
    import base64

    return np.frombuffer(base64.b64decode(known[part]), "<f2").astype(np.float32)


@pytest.mark.parametrize("share", [0.1, 0.29, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("projection", ["gate", "down"])
def test_every_row_has_exactly_its_share_of_zeros_where_the_scores_are_smallest(projection: str, share: float) -> None:
    rng = np.random.default_rng(0)
    width = WIDTH if projection == "down" else HIDDEN
    weight, known = rng.standard_normal((40, width)).astype(np.float32), detail(rng)
    made = Mask(sparsity=str(share)).changed(projection, weight, known)
    # Wanda as its paper writes it: sort the metric of each row, stably, and zero the first of them.
    metric = torch.from_numpy(np.abs(weight)) * torch.from_numpy(
        norms_of(known, "neurons" if projection == "down" else "hidden")
    )
    first = torch.sort(metric, dim=1, stable=True).indices[:, : int(width * share)]
    wanted = torch.from_numpy(weight).scatter(1, first, 0.0).numpy()
    assert (made == wanted).all()
    assert ((made == 0).sum(axis=1) == int(width * share)).all()


def test_ties_go_to_the_first_and_a_row_of_zeros_stays_one() -> None:
    made = Mask(mask_by="magnitude").changed("up", np.ones((2, 6), np.float32), {})
    assert (made == [0, 0, 0, 1, 1, 1]).all()
    assert not Mask(mask_by="magnitude").changed("up", np.zeros((2, 6), np.float32), {}).any()


@pytest.mark.parametrize(("asked", "stay", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8), (" 2:4 ", 2, 4)])
def test_of_every_few_weights_in_a_row_as_many_stay_as_were_asked_for(asked: str, stay: int, of: int) -> None:
    rng = np.random.default_rng(1)
    weight, known = rng.standard_normal((10, HIDDEN)).astype(np.float32), detail(rng)
    made = Mask(sparsity=asked).changed("gate", weight, known)
    metric = np.abs(weight) * norms_of(known, "hidden")
    for row, before, score in zip(made, weight, metric, strict=True):
        for at in range(0, HIDDEN, of):
            left = np.flatnonzero(row[at : at + of])
            assert set(left) == set(np.argsort(score[at : at + of])[-stay:])
            assert (row[at : at + of][left] == before[at : at + of][left]).all()


def test_a_gate_that_is_larger_throughout_leaves_the_mask_as_it_was() -> None:
    rng = np.random.default_rng(2)
    weight, norms = rng.standard_normal((20, HIDDEN)).astype(np.float32), rng.random((1, HIDDEN)) + 0.01
    made = []
    for factor in (1.0, 3.7):
        scaled = {0: norms * factor}
        known = {"gated-input-norm": scaled, "gated-neuron-norm": scaled}
        of = Mask().details(Evidence(inventory=None, signals=known), 0, (0,))  # type: ignore[arg-type]
        made.append(Mask().changed("up", weight, of[0]))
    assert (made[0] == made[1]).all()


def test_a_plan_that_could_not_be_read_back_is_not_written(
    watched: tuple[Path, Evidence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"criterion": "reap", "experts_per_layer": 4, "edit": "mask"}
    size = len(moeits.plan(watched[1], **asked).to_json())
    monkeypatch.setattr(pruning_plan, "MOST_BYTES", size)
    moeits.plan(watched[1], output=tmp_path / "fits.json", **asked)
    assert PruningPlan.load(tmp_path / "fits.json").to_json() == (tmp_path / "fits.json").read_text()
    monkeypatch.setattr(pruning_plan, "MOST_BYTES", size - 1)
    with pytest.raises(
        PlanError, match=f"This plan has {size:,} bytes, and moeits reads plans of {size - 1:,} at most"
    ):
        moeits.plan(watched[1], output=tmp_path / "plan.json", **asked)
    assert not (tmp_path / "plan.json").exists()


def test_norms_of_half_of_128_experts_in_94_layers_fit_into_a_plan() -> None:
    hidden, width = 4096, 1536
    assert 94 * 64 * 2.7 * (hidden + width) > MOST_BYTES_OF_JSON
    assert 94 * 128 * 2.7 * (hidden + width) < pruning_plan.MOST_BYTES


# ------------------------------------------------------------------------------------------------ norms of the inputs


def by_hand(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """Sums over single tokens of what the stock model hands to its experts, SwiGLU written out."""
    tokens = windows_of(Checkpoint.open(folder), Tokens(tokens=512, held_out=256, window=32), silent).watched
    model = need("transformers", extra="load").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[int, dict[str, np.ndarray]] = {}
    for i, layer in enumerate(model.model.layers):

        def hook(module: Any, args: Any, kwargs: Any, out: Any, i: int = i) -> None:  # noqa: ARG001
            hidden, chosen, gates = (*args, *kwargs.values())
            count = module.gate_up_proj.shape[0]
            own = found.setdefault(i, {n: np.zeros((count, WIDTH if "neuron" in n else HIDDEN)) for n in INPUT_NORMS})
            for x, experts, weights in zip(hidden.reshape(-1, HIDDEN), chosen, gates, strict=True):
                for e, g in zip(experts.tolist(), weights.tolist(), strict=True):
                    gate, up = (module.gate_up_proj[e] @ x).chunk(2)
                    neurons = (torch.nn.functional.silu(gate) * up).double().numpy()
                    inputs = (x.double().numpy(), neurons)
                    for name, value in zip(INPUT_NORMS, (*inputs, *(g * v for v in inputs)), strict=True):
                        own[name][e] += value**2

        layer.mlp.experts.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        for window in torch.from_numpy(tokens):
            model(input_ids=window[None], use_cache=False)
    return {i: {name: np.sqrt(sums) for name, sums in of.items()} for i, of in found.items()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evidence]:
    folder = make_toy(tmp_path_factory.mktemp("watched") / "toy", dtype="float32")
    give_tokenizer(folder)
    output = folder.parent / "signals.safetensors"
    moeits.calibrate(folder, input_norms=True, output=output, **SMALL)
    return folder, Evidence.load(output)


def test_norms_are_those_of_the_stock_models_inputs(watched: tuple[Path, Evidence]) -> None:
    folder, evidence = watched
    for layer, norms in by_hand(folder).items():
        for name, values in norms.items():
            np.testing.assert_allclose(evidence.signals[name][layer], values, rtol=1e-5, atol=1e-6, err_msg=name)
    plain = moeits.calibrate(folder, **SMALL)
    assert not {*INPUT_NORMS} & plain.signals.keys()
    assert all(
        np.array_equal(values, evidence.signals[name][layer])
        for name, layers in plain.signals.items()
        for layer, values in layers.items()
    )


def test_with_gates_of_1_moe_pruner_is_wanda(tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy", dtype="float32", top_k=1, norm_topk_prob=True)
    give_tokenizer(folder)
    evidence = moeits.calibrate(folder, input_norms=True, **SMALL)
    plans = [
        moeits.plan(evidence, criterion="frequency", experts_per_layer=4, edit="mask", mask_by=by)
        for by in ("moe-pruner", "wanda")
    ]
    assert plans[0].edit is not None
    assert plans[0].edit.details == plans[1].edit.details
    assert plans[0].edit.details.keys() == plans[0].kept.keys()


# ------------------------------------------------------------------------------------------------- whole checkpoints


@pytest.mark.parametrize("form", ["qwen2_moe", "qwen2_moe fused", "gpt_oss"])
@pytest.mark.parametrize("sparsity", ["0.75", "2:4"])
def test_all_matrices_of_kept_experts_have_the_zeros_and_all_else_its_bytes(
    form: str, sparsity: str, tmp_path: Path
) -> None:
    toy = make_toy(tmp_path / "toy", form.removesuffix(" fused"))
    toy = fuse(toy, tmp_path / "fused") if form.endswith("fused") else toy
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="mask", mask_by="magnitude", sparsity=sparsity)
    moeits.prune(toy, plan=plan, output=tmp_path / "made")
    moeits.prune(toy, plan=replace(plan, edit=None), output=tmp_path / "plain")
    made, plain = Checkpoint.open(tmp_path / "made"), Checkpoint.open(tmp_path / "plain")
    layout = MoELayout.of(made)
    for layer in layout.layers:
        for expert in range(3):
            for projection in ("gate", "up", "down"):
                new, old = (layout.read(each, layer, expert, projection) for each in (made, plain))
                zeros = int(old.shape[1] * (0.5 if ":" in sparsity else 0.75))
                assert ((new == 0).sum(axis=1) == zeros).all()
                assert (new[new != 0] == old[new != 0]).all()
    assert_all_but_experts_are_alike(tmp_path / "made", tmp_path / "plain")


def test_a_plan_holds_its_norms_replays_to_the_same_bytes_and_can_be_refitted(
    watched: tuple[Path, Evidence], tmp_path: Path
) -> None:
    toy, evidence = watched
    asked = {"criterion": "reap", "experts_per_layer": 4, "edit": "mask"}
    plan = moeits.plan(evidence, output=tmp_path / "plan.json", **asked)
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    moeits.prune(toy, plan=plan, output=tmp_path / "one")
    moeits.prune(toy, plan=tmp_path / "one" / "plan.json", output=tmp_path / "two")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    simplified = moeits.simplify(toy, output=tmp_path / "line", tokens=512, held_out=256, window=32, **asked)
    assert simplified.edit == plan.edit
    assert (tmp_path / "line" / "model.safetensors").read_bytes() == weights[0]
    small = {name: value for name, value in SMALL.items() if name != "selection"}
    assert moeits.refit(tmp_path / "one", parent=toy, output=tmp_path / "refitted", **small).layers


def test_an_expert_that_no_token_chose_is_masked_by_its_weights_alone(watched: tuple[Path, Evidence]) -> None:
    _, evidence = watched
    never = {name: {i: values.copy() for i, values in of.items()} for name, of in evidence.signals.items()}
    for name in INPUT_NORMS:
        never[name][0][2] = 0
    plan = moeits.plan(replace(evidence, signals=never), criterion="random", experts_per_layer=6, edit="mask")
    assert plan.edit is not None
    assert set(plan.edit.details[0]) == {0, 1, 3, 4, 5}
    weight = np.random.default_rng(0).standard_normal((5, HIDDEN)).astype(np.float32)
    assert (Mask().changed("up", weight, {}) == Mask(mask_by="magnitude").changed("up", weight, {})).all()


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "sparsity",
    [
        "0",
        "1",
        "1.5",
        "-0.1",
        "4:4",
        "5:4",
        "0:0",
        "a:b",
        "1:2:3",
        "half",
        "nan",
        "1:2048",
        "-4:-8",
        "-1:4",
        "0:4",
        "2.0:4",
    ],
)
def test_a_share_out_of_range_is_one_sentence(sparsity: str) -> None:
    with pytest.raises(SettingError, match=r"--sparsity '.*' is out of range: it is a share of zeros between 0 and 1"):
        Mask(sparsity=sparsity)


def test_what_cannot_be_masked_is_said_before_anything_is_written(
    watched: tuple[Path, Evidence], tmp_path: Path
) -> None:
    toy, evidence = watched
    scored = moeits.score(toy)
    with pytest.raises(SettingError, match=r"needs gated-input-norm and gated-neuron-norm, .* --input-norms, and give"):
        moeits.plan(scored, experts_per_layer=3, edit="mask")
    with pytest.raises(SettingError, match=r"--mask-by 'norms' is not one of moe-pruner, wanda, magnitude"):
        moeits.plan(scored, experts_per_layer=3, edit="mask", mask_by="norms")
    with pytest.raises(SettingError, match="--criterion moeits watches no tokens"):
        moeits.simplify(toy, experts_per_layer=3, edit="mask", output=tmp_path / "out")
    plan = moeits.plan(scored, experts_per_layer=3, edit="mask", mask_by="magnitude", sparsity="1:5")
    with pytest.raises(SettingError, match=r"1:5 is of every 5 weights of a row, and rows of gate have 32"):
        moeits.prune(toy, plan=plan, output=tmp_path / "out")
    masked = moeits.plan(evidence, criterion="reap", reduction=0.4, allocation="global", edit="mask")
    uneven = {**masked.kept, 0: masked.kept[0][:-1]}
    edit = masked.edit
    assert edit is not None
    details = {**edit.details, 0: {e: edit.details[0][e] for e in uneven[0]}}
    with pytest.raises(PlanError, match=r"other experts than those that this plan says how to change \(edit mask\)"):
        moeits.prune(
            toy,
            plan=replace(masked, kept=uneven, edit=replace(edit, details=details)),
            layout="uniform",
            output=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden": "ADw="}, "The norms in `edit` are not those of 32 inputs of gate"),
        ({"hidden": "!"}, "The norms in `edit` are not those that moeits plan writes"),
        ({"hidden": 3}, "The norms in `edit` are not those that moeits plan writes"),
        ({"hidden": "AHwA" * 21}, "The norms in `edit` are not"),
        ({}, "The norms in `edit` are not those that moeits plan writes"),
    ],
)
def test_norms_that_are_none_are_refused_in_a_sentence(
    watched: tuple[Path, Evidence], tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    toy, evidence = watched
    moeits.plan(evidence, criterion="reap", experts_per_layer=4, edit="mask", output=tmp_path / "plan.json")
    text = json.loads((tmp_path / "plan.json").read_text())
    details = text["edit"]["details"]["0"]
    expert = next(iter(details))
    details[expert] = {"neurons": details[expert]["neurons"], **change}
    (tmp_path / "plan.json").write_text(json.dumps(text))
    with pytest.raises(PlanError, match=sentence):
        moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out")
    details["99"] = details[expert]
    (tmp_path / "plan.json").write_text(json.dumps(text))
    with pytest.raises(PlanError, match="`edit` says something of expert 99 of layer 0, which is not kept"):
        moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mask_without_details_may_be_evened_out(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    plan = moeits.plan(moeits.score(toy), tau=0.5)
    assert len(set(plan.counts.values())) > 1
    masked = replace(plan, edit=PlannedEdit(name="mask", settings={"mask_by": "magnitude"}))
    done = moeits.prune(toy, plan=masked, layout="uniform", output=tmp_path / "out")
    assert len(set(done.counts.values())) == 1
