"""Layers for multi-token prediction, whose experts no plan covers: left out, or kept and said."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_layers import MtpModel
from typer.testing import CliRunner

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.command_line.app import application
from moeits.errors import SettingError
from moeits.experts.families import ARCHITECTURES, architecture_of
from moeits.experts.layout import MoELayout
from tests.toys import MODEL_TYPES, NEVER_UNIFORM, make_toy, read_config, read_tensors, write_checkpoint
from tests.wrappers import make_wrapper

KEY = "num_nextn_predict_layers"
# Of a family: what its layer for multi-token prediction is called, beside a model of three layers.
CALLED = {"glm4_moe": "model.layers.3.", "deepseek_v3": "model.layers.3.", "qwen3_next": "mtp.layers.0."}


def toy_with_mtp(folder: Path, model_type: str, *, experts: bool = True, **changes: object) -> Path:
    """A toy whose last layer is there once more, to predict the next but one token."""
    toy = make_toy(folder / "toy", model_type, layers=3, **changes)
    tensors = read_tensors(toy)
    last = {name: value for name, value in tensors.items() if ".layers.2." in name}
    again = {
        name.replace("model.layers.2.", CALLED[model_type]): value
        for name, value in last.items()
        if experts or ".mlp." not in name
    }
    return write_checkpoint(folder / "mtp", {**read_config(toy), KEY: 1}, {**tensors, **again})


def of_mtp(folder: Path, model_type: str) -> dict[str, bytes]:
    return {name: of.tobytes() for name, of in read_tensors(folder).items() if name.startswith(CALLED[model_type])}


@pytest.mark.parametrize("model_type", CALLED)
def test_a_uniform_output_with_experts_that_no_plan_covers_is_refused(tmp_path: Path, model_type: str) -> None:
    source = toy_with_mtp(tmp_path, model_type)
    name = {"qwen3_next": "mtp"}.get(model_type, r"model\.layers\.3")
    with pytest.raises(SettingError, match=rf"multi-token prediction \({name}\) would keep its experts.*--drop-mtp"):
        moeits.simplify(source, experts_per_layer=4, output=tmp_path / "out", layout="uniform")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["auto", "uniform", "per-layer"])
@pytest.mark.parametrize("model_type", CALLED)
def test_on_request_they_are_left_out_with_what_promises_them(tmp_path: Path, model_type: str, layout: str) -> None:
    source = toy_with_mtp(tmp_path, model_type)
    plan = moeits.simplify(source, experts_per_layer=4, output=tmp_path / "out", layout=layout, drop_mtp=True)
    assert not of_mtp(tmp_path / "out", model_type)
    assert read_config(tmp_path / "out")[KEY] == 0
    assert ("per_layer_config" in read_config(tmp_path / "out")) == (layout == "per-layer")
    out, before = Checkpoint.open(tmp_path / "out"), Checkpoint.open(source)
    assert (plan.summary["parameters_after"], plan.summary["bytes_after"]) == (out.parameters, out.nbytes)
    assert plan.summary["reduction_of_all"] == pytest.approx(1 - out.parameters / before.parameters)
    assert (
        f"Left out: the layer for multi-token prediction ({CALLED[model_type][:3]}"
        in (tmp_path / "out/README.md").read_text()
    )


@pytest.mark.parametrize("model_type", CALLED)
def test_by_default_they_are_kept_whole_in_a_layout_that_can_say_so(tmp_path: Path, model_type: str) -> None:
    source = toy_with_mtp(tmp_path, model_type)
    plan = moeits.simplify(source, experts_per_layer=4, output=tmp_path / "out")
    assert of_mtp(tmp_path / "out", model_type) == of_mtp(source, model_type) != {}
    config = read_config(tmp_path / "out")
    assert config[KEY] == 1
    assert config["per_layer_config"], "its own number of experts is only true of layers that are not listed"
    assert plan.settings["mtp"] == "kept whole"
    assert "Kept whole: the layer for multi-token prediction" in (tmp_path / "out/README.md").read_text()
    assert Checkpoint.open(tmp_path / "out").nbytes == plan.summary["bytes_after"]


def test_the_plan_of_an_output_makes_it_again(tmp_path: Path) -> None:
    source = toy_with_mtp(tmp_path, "glm4_moe")
    moeits.simplify(source, experts_per_layer=4, output=tmp_path / "out", drop_mtp=True)
    moeits.prune(source, plan=tmp_path / "out/plan.json", output=tmp_path / "again")
    for name in ("config.json", "plan.json", "README.md", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_one_without_experts_stays_in_a_uniform_output(tmp_path: Path) -> None:
    source = toy_with_mtp(tmp_path, "glm4_moe", experts=False)
    plan = moeits.simplify(source, experts_per_layer=4, output=tmp_path / "out", layout="uniform")
    assert of_mtp(tmp_path / "out", "glm4_moe") == of_mtp(source, "glm4_moe") != {}
    assert "mtp" not in plan.settings


def test_the_command_line_says_what_became_of_them(tmp_path: Path) -> None:
    source = toy_with_mtp(tmp_path, "glm4_moe")
    for flags, says in ([], "are kept whole"), (["--drop-mtp"], "are dropped"):
        arguments = ["simplify", str(source), "--experts-per-layer", "4", "--output", str(tmp_path / says), *flags]
        result = CliRunner().invoke(application(), arguments)
        assert result.exit_code == 0, result.output
        assert says in " ".join(result.output.split())


# ------------------------------------------------------------------------------------- every family that has them

NUMBERED = "numbered on behind the last layer"
HAVE_SUCH = {
    **dict.fromkeys(
        (
            *("bailing_hybrid", "deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm5_next"),
            *("glm_moe_dsa", "hy_v3"),
        ),
        NUMBERED,
    ),
    **dict.fromkeys(
        (
            *(
                "deepseek_v4",
                "ernie4_5_moe",
                "exaone_moe",
                "mellum",
                "minimax_m3_vl",
                "minimax_m3_vl_text",
                "nemotron_h",
            ),
            *("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text"),
        ),
        "mtp.layers.0.",
    ),
    **dict.fromkeys(
        ("dots3_note", "dots3_note_text", "inkling_mm_model", "inkling_text", "mimo_v2_flash"), "model.mtp.layers.0."
    ),
    "hy_v4": "model.mtp_layers.0.",
    "mistral_large4": "mtp_dspark.0.",
}
"""Families with such a layer -> what its tensors' names begin with."""

SOME = {"bailing_hybrid", "exaone_moe", "hy_v4", "minimax_m3_vl", "nemotron_h", "qwen3_5_moe"}


def called_by_the_stock_class(model_type: str) -> str | None:
    """What the layer is called by the tensors that a family's stock class passes over; None if it has none."""
    auto = getattr(transformers, architecture_of({"model_type": model_type}).auto_class)
    stock = auto._model_mapping.get(transformers.CONFIG_MAPPING[model_type], None)
    patterns = [*(getattr(stock, "_keys_to_ignore_on_load_unexpected", None) or ())]
    named = (each for each in dict.fromkeys(HAVE_SUCH.values()) if any(re.search(own, each) for own in patterns))
    numbered = any(re.search(r"layers\\\.\d", pattern) for pattern in patterns)
    return next(named, NUMBERED if numbered else None)


def test_families_with_them_are_those_whose_stock_class_passes_them_over() -> None:
    found = {each.model_type: called_by_the_stock_class(each.model_type) for each in ARCHITECTURES}
    assert {model_type: name for model_type, name in found.items() if name} == HAVE_SUCH
    assert len(HAVE_SUCH) == 28


def layers_again(tensors: Mapping[str, Any], layout: MoELayout, called: str) -> tuple[str, dict[str, Any]]:
    """What the last layer with experts is called as one for multi-token prediction, and its tensors under that name."""
    last = max(layout.layers)
    block = layout.layers[last].block
    before = re.sub(rf"\b{last}\..*", "", block)
    name = f"{before}{last + 1}." if called == NUMBERED else called
    own = f"{before}{last}."
    return name, {name + of.removeprefix(own): value for of, value in tensors.items() if of.startswith(own)}


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(each, marks=[] if each in SOME else [pytest.mark.every_family]) for each in HAVE_SUCH],
)
def test_in_every_family_they_are_found_and_kept_or_left_out(tmp_path: Path, model_type: str) -> None:
    toy = (make_toy if model_type in MODEL_TYPES else make_wrapper)(tmp_path / "toy", model_type)
    config, tensors = read_config(toy), read_tensors(toy)
    _, more = layers_again(tensors, MoELayout.of(Checkpoint.open(toy)), HAVE_SUCH[model_type])
    architecture = architecture_of(config)
    config = architecture.with_part(config, {**architecture.part_of(config), KEY: 1})
    source = write_checkpoint(tmp_path / "source", config, tensors | more)
    plan = moeits.simplify(source, experts_per_layer=4, output=tmp_path / "kept")
    kept = read_tensors(tmp_path / "kept")
    assert plan.settings["mtp"] == "kept whole"
    assert all(kept[of].tobytes() == value.tobytes() for of, value in more.items())
    assert architecture.part_of(read_config(tmp_path / "kept"))[KEY] == 1
    moeits.load(tmp_path / "kept")
    moeits.prune(source, plan=plan, output=tmp_path / "less", drop_mtp=True)
    left = read_tensors(tmp_path / "less")
    assert left.keys() == kept.keys() - more.keys()
    assert all(left[of].tobytes() == kept[of].tobytes() for of in left)
    assert architecture.part_of(read_config(tmp_path / "less"))[KEY] == 0
    opens = (
        moeits.load if model_type in NEVER_UNIFORM else getattr(transformers, architecture.auto_class).from_pretrained
    )
    opens(tmp_path / "less")


@pytest.mark.parametrize("budget", [{"experts_per_layer": 4}, {"tau": 0.5}], ids=["equal", "unequal"])
@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe"])
def test_stock_transformers_drafts_with_one_that_was_kept(
    tmp_path: Path, model_type: str, budget: dict[str, Any]
) -> None:
    """It builds the layer by the one number of experts that config.json has beside those of single layers."""
    toy = make_toy(tmp_path / "toy", model_type, layers=3, dtype="float32")
    tensors, rng = read_tensors(toy), np.random.default_rng(0)
    name, more = layers_again(tensors, MoELayout.of(Checkpoint.open(toy)), NUMBERED)
    ones = dict.fromkeys(("enorm.weight", "hnorm.weight", "shared_head.norm.weight"), np.ones(32, np.float32))
    beside = ones | {"eh_proj.weight": 0.1 * rng.standard_normal((32, 64)).astype(np.float32)}
    more |= {name + of: value for of, value in beside.items()}
    source = write_checkpoint(tmp_path / "source", {**read_config(toy), KEY: 1}, tensors | more)
    moeits.simplify(source, output=tmp_path / "out", **budget)
    model = moeits.load(tmp_path / "out").eval()
    # The stock class knows its layer by the number that it has in the full model.
    model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.3\..*"]
    layer = MtpModel.from_pretrained(model).layers[0].state_dict()
    assert np.array_equal(layer["mtp_block.mlp.gate.weight"], more[f"{name}mlp.gate.weight"])
    assert np.array_equal(layer["mtp_block.mlp.experts.down_proj"][5], more[f"{name}mlp.experts.5.down_proj.weight"])
    tokens, asked = torch.arange(2, 14)[None], {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(tokens, use_mtp=True, **asked), model.generate(tokens, **asked))
