"""Layers for multi-token prediction, whose experts no plan covers: left out, or kept and said."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.command_line.app import application
from moeits.errors import SettingError
from tests.toys import make_toy, read_config, read_tensors, write_checkpoint

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
