"""--layout padded: stock classes open unequal layers, since what fills them up can never be chosen."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.command_line.app import main as command_line
from moeits.errors import CheckpointError, MoeitsError, PlanError, SettingError
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from moeits.surgery.padding import SELECTION_BIASES
from tests.evaluation_toys import give_tokenizer
from tests.masked import EXTRA_ROWS, TOLERANCE, continuation, logits, routers_masked
from tests.toys import (
    FORMS,
    MODEL_TYPES,
    NEVER_UNIFORM,
    VOCAB,
    fuse,
    make_toy,
    moe_layers,
    read_config,
    read_tensors,
    write_checkpoint,
)

EXPERTS = 6
TOKENS = torch.arange(2 * 20).reshape(2, 20) * 7 % VOCAB
UNEVEN = {0: (0, 2, 3, 5), 1: (1, 4), 2: (0, 1, 3, 4, 5)}
MANY = {0: (0, 2, 3, 5), 1: (0, 1, 2, 3), 2: (0, 1, 3, 4, 5, 6)}
"""Of 7 experts; in padded layers, too, more than the 2 that a token is given to, so that there is a choice."""

FEW: dict[str, Any] = {"tokens": 512, "held_out": 256, "window": 32}

Kept = Mapping[int, tuple[int, ...]]


def can_be_padded(model_type: str) -> bool:
    """A bias is added to scores, each of which is of its own logit alone."""
    family = architecture_of({"model_type": model_type})
    return any(name.endswith(SELECTION_BIASES) for name in family.router) and family.affinity != "softmax"


PADDED = [each for each in MODEL_TYPES if can_be_padded(each) and each not in NEVER_UNIFORM]
OTHERS = [each for each in MODEL_TYPES if not can_be_padded(each) and each not in NEVER_UNIFORM]


def opened(folder: Path, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    """By the stock class alone: no code of the checkpoint, nothing of moeits."""
    auto = getattr(transformers, architecture_of(read_config(folder)).auto_class)
    return auto.from_pretrained(folder, dtype=dtype, **how)


def chosen(toy: Path, kept: Kept = UNEVEN) -> dict[int, tuple[int, ...]]:
    """As many experts in the toy's MoE layers, or more where its router needs more."""
    config = read_config(toy)
    least = max(architecture_of(config).least_per_group(config), 2)
    return {
        i: kept[i] if len(kept[i]) >= least else tuple(sorted({*kept[i], 0, 2, 3})[:least]) for i in moe_layers(config)
    }


def padded(toy: Path, kept: Kept, output: Path, layout: str = "padded") -> Path:
    plan = moeits.plan(moeits.score(toy), criterion="random", experts_per_layer=len(next(iter(kept.values()))))
    moeits.prune(toy, plan=replace(plan, kept=dict(kept), order={}), output=output, layout=layout)
    return output


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_families_that_the_page_speaks_of_are_there() -> None:
    assert {"deepseek_v3", "glm4_moe", "minimax_m2", "dots1"} <= set(PADDED)
    assert {"ernie4_5_moe", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"} <= set(OTHERS)


@pytest.mark.parametrize("model_type", PADDED)
def test_the_stock_class_computes_what_the_masked_original_computes(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    kept = chosen(toy)
    ours = opened(padded(toy, kept, tmp_path / "padded"))
    original = opened(toy)
    with routers_masked(original, kept, EXPERTS, EXTRA_ROWS.get(model_type, 0)):
        expected, text = logits(original, TOKENS), continuation(original, TOKENS)
    assert furthest(logits(ours, TOKENS), expected) < TOLERANCE
    assert torch.equal(continuation(ours, TOKENS), text)
    assert not list((tmp_path / "padded").glob("*.py"))


def with_real_routers(folder: Path, model_type: str, largest_bias: float = 0.5) -> Path:
    """A toy of 7 experts whose router's logits are a few units large, and its biases from 0 to the largest."""
    made, rng = make_toy(folder / "made", model_type, dtype="float32", experts=7), np.random.default_rng(0)
    tensors = dict(read_tensors(made))
    for layer in MoELayout.of(Checkpoint.open(made)).layers.values():
        for name in layer.router:
            value = tensors[name]
            if name.endswith(SELECTION_BIASES):
                biases = rng.permutation(np.linspace(0, largest_bias, value.size))
                tensors[name] = biases.reshape(value.shape).astype(value.dtype)
            else:
                tensors[name] = value / 2
    return write_checkpoint(folder / "toy", read_config(made), tensors)


def masked_logits(toy: Path, kept: Kept) -> torch.Tensor:
    original = opened(toy)
    with routers_masked(original, kept, 7, EXTRA_ROWS.get(read_config(toy)["model_type"], 0)):
        return logits(original, TOKENS)


@pytest.mark.parametrize("model_type", PADDED)
def test_biases_and_logits_of_real_size_choose_the_same_experts_beside_padding(tmp_path: Path, model_type: str) -> None:
    toy = with_real_routers(tmp_path / "biased", model_type)
    kept = chosen(toy, MANY)
    expected = masked_logits(toy, kept)
    assert furthest(masked_logits(with_real_routers(tmp_path / "unbiased", model_type, 0), kept), expected) > 0.1
    assert furthest(logits(opened(padded(toy, kept, tmp_path / "padded")), TOKENS), expected) < TOLERANCE


def test_padding_beside_a_softmax_over_all_would_choose_other_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = with_real_routers(tmp_path, "ernie4_5_moe")
    kept = chosen(toy, MANY)
    with pytest.raises(SettingError, match=r"ernie4_5_moe chooses by a softmax over all.*--layout uniform"):
        padded(toy, kept, tmp_path / "padded")
    monkeypatch.setattr("moeits.surgery.padding._check_family", lambda *_: None)
    found = logits(opened(padded(toy, kept, tmp_path / "padded")), TOKENS)
    assert furthest(found, masked_logits(toy, kept)) > 0.1


@pytest.mark.parametrize("model_type", ["deepseek_v3", "dots1", "glm4_moe"])
def test_groups_are_padded_each_by_itself(tmp_path: Path, model_type: str) -> None:
    made = make_toy(tmp_path / "made", model_type, dtype="float32", experts=8, n_group=2, topk_group=1)
    # In an original whose removed experts are masked, a negative score loses to the 0 of a group that was not chosen.
    tensors = {name: abs(value) if "correction_bias" in name else value for name, value in read_tensors(made).items()}
    toy = write_checkpoint(tmp_path / "toy", read_config(made), tensors)
    several: Kept = {0: (0, 2, 5, 7), 1: (0, 1, 4, 6), 2: (0, 1, 3, 4, 6, 7)}
    kept = {i: several[i] for i in moe_layers(read_config(toy))}
    assert len({len(experts) for experts in kept.values()}) > 1
    original, ours = opened(toy), opened(padded(toy, kept, tmp_path / "padded"))
    with routers_masked(original, kept, 8):
        expected = logits(original, TOKENS)
    assert furthest(logits(ours, TOKENS), expected) < TOLERANCE
    assert read_config(tmp_path / "padded")["moeits"]["padding"] == {"1": [2, 5]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe", "minimax_m2"])
def test_padding_is_never_chosen_in_half_precision(tmp_path: Path, model_type: str, dtype: torch.dtype) -> None:
    toy = make_toy(tmp_path / "toy", model_type)
    # Of matrices this narrow grouped products of half precision are refused.
    model = opened(padded(toy, chosen(toy), tmp_path / "padded"), dtype, experts_implementation="eager")
    added = read_config(tmp_path / "padded")["moeits"]["padding"]
    poisoned = 0
    for layer, numbers in added.items():
        for name, weight in model.model.layers[int(layer)].named_parameters():
            if ".experts." in name and weight.ndim == 3:
                weight.data[numbers] = torch.nan
                poisoned += 1
    assert poisoned >= 2 * len(added) > 0
    assert logits(model, TOKENS * 3 % VOCAB).isfinite().all()


@pytest.mark.parametrize("form", [form for form in FORMS if form.partition(" ")[0] in {"deepseek_v3", "glm4_moe"}])
def test_bytes_are_those_of_the_largest_layer_and_said(tmp_path: Path, form: str) -> None:
    model_type, _, is_fused = form.partition(" ")
    toy = make_toy(tmp_path / "toy", model_type)
    toy = fuse(toy, tmp_path / "fused") if is_fused else toy
    kept = chosen(toy)
    padded(toy, kept, tmp_path / "padded")
    padded(toy, kept, tmp_path / "unequal", layout="per-layer")
    even = padded(toy, {i: tuple(range(max(map(len, kept.values())))) for i in kept}, tmp_path / "even", "uniform")
    size = {name: Checkpoint.open(tmp_path / name).nbytes for name in ("padded", "unequal", "even")}
    assert size["padded"] == size["even"] > size["unequal"]
    plan = moeits.PruningPlan.load(tmp_path / "padded" / "plan.json")
    assert plan.summary["padded_bytes"] == size["padded"]
    assert plan.summary["bytes_after"] == size["unequal"]
    assert {name: value.shape for name, value in read_tensors(tmp_path / "padded").items()} == {
        name: value.shape for name, value in read_tensors(even).items()
    }


@pytest.mark.parametrize("model_type", OTHERS)
def test_without_a_selection_bias_it_is_one_sentence(tmp_path: Path, model_type: str) -> None:
    toy = make_toy(tmp_path / "toy", model_type)
    with pytest.raises(MoeitsError, match=r"--layout padded (needs a router that chooses|has one)") as error:
        padded(toy, chosen(toy), tmp_path / "padded")
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "padded").exists()


def test_fewer_experts_than_the_router_picks_and_an_edit_are_refused(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2")
    with pytest.raises(PlanError, match=r"Layer 1 keeps 1 experts and its router picks 2.*--min-experts"):
        padded(toy, {0: (0, 1, 2), 1: (3,), 2: (0, 1)}, tmp_path / "padded")
    with pytest.raises(SettingError, match=r"--layout padded cannot be with the edit average"):
        moeits.simplify(toy, reduction=0.5, edit="average", layout="padded", output=tmp_path / "padded")


def test_whatever_chooses_or_changes_experts_says_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2", dtype="float32")
    give_tokenizer(toy)
    even = padded(toy, {0: (0, 1, 2), 1: (3, 4), 2: (0, 1)}, tmp_path / "padded")
    data, out = tmp_path / "train.jsonl", tmp_path / "out"
    data.write_text(json.dumps({"text": "to be or not to be " * 9}) + "\n")
    plan = moeits.plan(moeits.score(toy), criterion="random", experts_per_layer=2)
    verbs: Mapping[str, Any] = {
        "score": lambda: moeits.score(even, output=out),
        "calibrate": lambda: moeits.calibrate(even, output=out, device="cpu", **FEW),
        "prune": lambda: moeits.prune(even, plan=plan, any_fingerprint=True, output=out),
        "simplify": lambda: moeits.simplify(even, criterion="random", reduction=0.3, output=out),
        "pad again": lambda: moeits.simplify(
            even, criterion="random", reduction=0, force=True, layout="padded", output=out
        ),
        "refit": lambda: moeits.refit(even, parent=toy, output=out, device="cpu", **FEW),
        "heal": lambda: moeits.heal(even, data=data, output=out),
        "forecast": lambda: moeits.forecast(even, output=out, device="cpu", **FEW),
        "compare-criteria": lambda: moeits.compare_criteria(even, output=out, device="cpu"),
        "sweep": lambda: moeits.sweep(even, tau="1", output=out),
    }
    sentence = r"is padded with experts of zeros .* with --layout per-layer, and begin from that\.$"
    for verb, call in verbs.items():
        with pytest.raises(CheckpointError, match=sentence) as found:
            call()
        assert str(found.value).count(". ") == 0, verb
        assert not out.exists(), verb


@pytest.mark.parametrize("treated", [{"refit": True}, {"heal": "train.jsonl"}])
def test_padding_before_a_refit_or_a_healing_is_refused_before_anything(tmp_path: Path, treated: Any) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2")
    with pytest.raises(SettingError, match=r"--layout padded comes last.* with --layout per-layer, and pad what"):
        moeits.simplify(toy, reduction=0.3, layout="padded", output=tmp_path / "out", **treated)
    assert [each.name for each in tmp_path.iterdir()] == ["toy"]


def test_it_can_be_inspected_explained_evaluated_and_measured(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2", dtype="float32")
    give_tokenizer(toy)
    even = padded(toy, {0: (0, 1, 2), 1: (3, 4), 2: (0, 1)}, tmp_path / "padded")
    assert [row.experts for row in moeits.inspect(even).layers] == [3, 3, 3]
    assert moeits.inspect(even, explain=True).fits
    text = tmp_path / "valid.jsonl"
    text.write_text(json.dumps({"text": "to be or not to be " * 9}) + "\n")
    results = moeits.evaluate(even, perplexity=text, device="cpu")
    assert results.model["experts"] == {"0": 3, "1": 3, "2": 3}
    assert moeits.evaluate(even, perplexity=text, device="cpu", dry_run=True).source == "padded"
    assert moeits.measure(even, run=False).model["model_type"] == "minimax_m2"


@pytest.mark.parametrize("form", ["minimax_m2", "minimax_m2 fused"])
def test_a_checkpoint_of_unequal_layers_is_padded_as_it_is(tmp_path: Path, form: str) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2", dtype="float32")
    toy = fuse(toy, tmp_path / "fused") if "fused" in form else toy
    unequal = padded(toy, chosen(toy), tmp_path / "unequal", layout="per-layer")
    moeits.simplify(unequal, criterion="random", reduction=0, force=True, layout="padded", output=tmp_path / "padded")
    expected = logits(moeits.load(unequal, dtype=torch.float32), TOKENS)
    assert furthest(logits(opened(tmp_path / "padded"), TOKENS), expected) < TOLERANCE
    assert read_config(tmp_path / "padded")["num_local_experts"] == 5


def test_a_size_is_kept_with_its_padding_or_refused(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2")
    plan = moeits.plan(moeits.score(toy), criterion="random", max_size=Checkpoint.open(toy).nbytes * 2 // 3)
    kept = dict(zip(plan.kept, [(0, 1, 2), (0, 1, 2, 3, 4), (0, 1)], strict=True))
    for most, fits in ((plan.settings["max_size"], False), (10**9, True)):
        asked = replace(plan, kept=kept, order={}, settings={**plan.settings, "max_size": most})
        if fits:
            made = moeits.prune(toy, plan=asked, output=tmp_path / "padded", layout="padded")
            assert "bytes of tensors, with padding" in (tmp_path / "padded" / "README.md").read_text()
            again = moeits.prune(toy, plan=made, output=tmp_path / "again", layout="per-layer")
            assert "padded_bytes" not in again.summary
        else:
            with pytest.raises(PlanError, match=r"Padded to 5 experts .* more than the .* of --max-size"):
                moeits.prune(toy, plan=asked, output=tmp_path / "padded", layout="padded")


def test_the_console_and_the_card_say_what_padding_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2")
    plan = moeits.plan(moeits.score(toy), criterion="random", experts_per_layer=3)
    replace(plan, kept=chosen(toy), order={}).save(tmp_path / "plan.json")
    words = ["prune", toy, "--plan", tmp_path / "plan.json", "--layout", "padded", "-o", tmp_path / "padded"]
    monkeypatch.setattr("sys.argv", ["moeits", *map(str, words)])
    with pytest.raises(SystemExit):
        command_line()
    out = capsys.readouterr().out
    assert "layers are padded to 5 experts" in out
    assert "layers keep different numbers" not in out
    card = (tmp_path / "padded" / "README.md").read_text()
    assert "All layers have the same number of experts in the files" in card
    assert "-10000" in card


def test_a_layer_that_is_whole_needs_no_padding(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2")
    padded(toy, dict.fromkeys(range(3), (0, 1, 4)), tmp_path / "padded")
    padded(toy, dict.fromkeys(range(3), (0, 1, 4)), tmp_path / "uniform", layout="uniform")
    found, expected = read_tensors(tmp_path / "padded"), read_tensors(tmp_path / "uniform")
    assert all(found[name].tobytes() == value.tobytes() for name, value in expected.items())
    assert MoELayout.of(Checkpoint.open(tmp_path / "padded")).layers[0].num_experts == 3
