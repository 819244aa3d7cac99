"""`moeits inspect --explain`: what the tensors of any checkpoint seem to be, and a description to start from."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.command_line import app as cli
from moeits.errors import CheckpointError, SettingError
from moeits.experts.described import families_of_text, with_recorded
from moeits.experts.layout import MoELayout
from tests.toys import FORMS, fuse, make_toy, read_config, read_tensors, write_checkpoint
from tests.unknown import forget
from tests.wrappers import WRAPPERS, make_wrapper

TAKES_TURNS = {"gpt_oss", "inkling2", "inkling2_text"}
"""What shapes do not tell, so that the entry is to be corrected, as is said: `stacking = "alternating columns"`."""

NOT_TOLD = {
    **dict.fromkeys(("deepseek_v4", "deepseek_v4 fused"), "would be of the router and of what is shared"),
    "gemma4": "would be of the router and of what is shared",
    "gemma4_text": "would be of the router and of what is shared",
    "inkling_mm_model": "no tensor of three axes with a router",
    "inkling_text": "no tensor of three axes with a router",
    "kolibri1": "whether model.layers.{layer}.moe.router.expert_bias is of the router",
    "mistral_large4": "which tensors of the layer are of shared experts",
    "muse_spark": "which axis of the fused tensors is as wide as the residual stream",
    "nemo_speechlm": "config.json has no number of experts",
    "nemotron_h_omni": "config.json has no number of experts",
    "zaya": "no tensor of three axes with a router",
}
"""Forms too much of their own for an entry made from names and shapes: what is said of them instead of an entry that
can be taken as it is. Experts and routers that are named are right all the same."""

FUSED = {"mixtral fused", "ernie4_5_moe fused", "laguna fused"}


def roles(found: Any) -> dict[str, str]:
    return {named.name: named.role for named in found.names}


def rewritten(toy: Path, **changes: Any) -> Path:
    (toy / "config.json").write_text(json.dumps(read_config(toy) | changes))
    return toy


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[pytest.mark.every_family] if form.endswith(" fused") and form not in FUSED else [])
        for form in (*FORMS, *WRAPPERS)
    ],
)
def test_the_entry_made_from_names_and_shapes_gives_every_tensor_the_role_it_has(tmp_path: Path, form: str) -> None:
    """The table is the oracle: the entry is made without it, but for the usual names of routers."""
    model_type, _, is_fused = form.partition(" ")
    folder = (make_wrapper if form in WRAPPERS else make_toy)(tmp_path / "toy", model_type)
    folder = fuse(folder, tmp_path / "fused") if is_fused else folder
    found = moeits.inspect(folder, explain=True)
    if form in NOT_TOLD:
        ours = MoELayout.of(Checkpoint.open(folder))
        told = {re.sub(r"\\{\w+\\}", r"\\d+", re.escape(name)): role for name, role in roles(found).items()}
        for layer in ours.layers.values():
            in_table = dict.fromkeys(layer.router, "router") | dict.fromkeys(layer.fused.values(), "expert")
            in_table |= {name: "expert" for tensors in layer.experts.values() for name in tensors.values()}
            for name in Checkpoint.open(folder).tensors:
                role = next(role for pattern, role in told.items() if re.fullmatch(pattern, name))
                if found.entry is None:
                    assert role == "other", name
                elif name in in_table:
                    assert role in (in_table[name], "unclear"), name
                elif name.startswith(layer.within):
                    assert role not in ("expert", "router"), name
        assert NOT_TOLD[form] in " ".join((*found.missing, found.why_not or ""))
        return
    assert found.fits, found.why_not
    assert found.entry is not None
    assert model_type not in TAKES_TURNS or any("take turns" in doubt for doubt in found.missing)
    (family,) = families_of_text(found.entry)
    checkpoint = Checkpoint.open(folder)
    ours = MoELayout.of(checkpoint)
    checkpoint.config = with_recorded(checkpoint.config, family)
    theirs = MoELayout.of(checkpoint)
    inside = [name.removeprefix(theirs.layers[at].block) for at, moe in ours.layers.items() for name in moe.shared]
    assert all(any(name.startswith(prefix) for name in inside) for prefix in family.shared)
    assert theirs.layers.keys() == ours.layers.keys() == {*found.layers}
    for layer, moe in ours.layers.items():
        other = theirs.layers[layer]
        assert (other.experts, {*other.fused.values()}) == (moe.experts, {*moe.fused.values()})
        assert (other.router, {*other.shared}) == (moe.router, {*moe.shared})
        assert (other.num_experts, other.top_k, other.groups) == (moe.num_experts, moe.top_k, moe.groups)
        assert other.sizes == moe.sizes
    stacking = theirs.architecture.stacking, ours.architecture.stacking
    assert len({*stacking}) == 1 or model_type in TAKES_TURNS
    for projection in ours.architecture.projection_names if model_type not in TAKES_TURNS else ():
        read = [of.read(checkpoint, found.layers[0], 1, projection) for of in (ours, theirs)]
        assert np.array_equal(*read), projection


@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3", "granitemoe", "mixtral"])
def test_an_unknown_family_is_scored_and_pruned_by_its_entry_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
    known = moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "known")
    forget(monkeypatch, tmp_path / "table", model_type)
    shown = CliRunner().invoke(cli.application(), ["inspect", str(toy), "--explain"])
    assert shown.exit_code == 0
    assert "which moeits does not know" in shown.stdout
    begin = shown.stdout.index(f"[{model_type}]")
    (tmp_path / "mine.toml").write_text(shown.stdout[begin : shown.stdout.index("\n\n", begin)])
    plan = moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out", architecture=tmp_path / "mine.toml")
    assert plan.kept == known.kept
    ours, theirs = read_tensors(tmp_path / "out"), read_tensors(tmp_path / "known")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_names_are_shown_without_numbers_with_their_role_and_why(tmp_path: Path) -> None:
    found = moeits.inspect(make_toy(tmp_path / "toy", "qwen2_moe"), explain=True)
    by_name = {named.name: named for named in found.names}
    up = by_name["model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"]
    assert (up.count, up.shapes, up.role) == (18, ((12, 32),), "expert")
    assert "numbered from 0 to 5 in each layer" in up.why
    assert by_name["model.layers.{layer}.mlp.gate.weight"].role == "router"
    assert by_name["model.layers.{layer}.mlp.shared_expert_gate.weight"].role == "shared"
    assert by_name["model.embed_tokens.weight"].why == "has no number of a layer"
    assert (found.experts, found.layers, found.known) == (6, (0, 1, 2), True)
    assert "qwen2_moe" in found.like


def test_what_has_an_entry_for_each_expert_and_an_unknown_name_gets_no_role(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe")
    tensors = read_tensors(toy)
    odd = {f"model.layers.{layer}.mlp.mixing.weight": np.ones((6, 32), np.float32) for layer in range(3)}
    write_checkpoint(tmp_path / "odd", read_config(toy) | {"model_type": "mine"}, tensors | odd)
    found = moeits.inspect(tmp_path / "odd", explain=True)
    assert roles(found)["model.layers.{layer}.mlp.mixing.weight"] == "unclear"
    assert not found.fits
    assert "mixing.weight is none of the tensors that a mine MoE block has" in (found.why_not or "")
    (tmp_path / "mine.toml").write_text(found.entry or "")
    with pytest.raises(CheckpointError, match=r"mixing\.weight is none of the tensors"):
        moeits.score(tmp_path / "odd", architecture=tmp_path / "mine.toml")


def test_two_moe_parts_are_not_chosen_between(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe")
    tensors = read_tensors(toy)
    twins = {name.replace("model.", "encoder."): value for name, value in tensors.items() if ".layers." in name}
    write_checkpoint(tmp_path / "two", read_config(toy) | {"model_type": "mine"}, tensors | twins)
    found = moeits.inspect(tmp_path / "two", explain=True)
    assert found.entry is None
    assert "encoder.layers.{layer}.mlp" in found.missing[0]
    assert "several names" in found.missing[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts": None, "num_local_experts": None}, "no number of experts"),
        ({"num_experts": 7, "num_local_experts": 7}, "has num_experts 7"),
        ({"num_experts_per_tok": None}, "top_k_key"),
    ],
)
def test_what_config_json_does_not_say_is_said_to_be_missing(tmp_path: Path, changes: Any, said: str) -> None:
    toy = rewritten(make_toy(tmp_path / "toy", "qwen3_moe"), model_type="mine", **changes)
    found = moeits.inspect(toy, explain=True)
    assert any(said in doubt for doubt in found.missing)
    assert not found.fits


@pytest.mark.parametrize(
    ("config", "layers", "rule"),
    [
        ({"first_k_dense_replace": 2}, [2, 3, 4, 5], {"from": {"key": "first_k_dense_replace"}}),
        (
            {"mlp_layer_types": list("dsdsds")},
            [1, 3, 5],
            {"kinds": [{"key": "mlp_layer_types", "with_experts": ["s"]}]},
        ),
        ({"moe_step": 2}, [1, 3, 5], {"every": {"key": "moe_step", "first_number": 1}}),
        ({"period": 3, "offset": 1}, [1, 4], {"every": {"key": "period", "offset": {"key": "offset"}}}),
        ({"step": 1, "plain_layers": [0, 2]}, [1, 3, 4, 5], {"every": {"key": "step"}, "but": {"key": "plain_layers"}}),
        ({"moe_layers": [0, 3]}, [0, 3], {"listed": "moe_layers"}),
        ({"layer_types": ["a", "b"] * 3}, [0, 1, 2, 3, 4, 5], {}),
        ({}, [1, 2, 3, 4, 5], {"from": 1}),
        ({}, [0, 3], None),
    ],
)
def test_which_layers_have_experts_is_found_among_the_keys_of_the_config(
    config: dict[str, Any], layers: list[int], rule: Any
) -> None:
    from moeits.experts.explaining.layer_rules import layer_rule

    assert layer_rule({"num_hidden_layers": 6, **config}, {*layers}) == rule


def test_names_of_strangers_reach_no_terminal_raw(tmp_path: Path) -> None:
    toy = rewritten(make_toy(tmp_path / "toy", "qwen3_moe"), model_type='m"\x1b[31m')
    shown = CliRunner().invoke(cli.application(), ["inspect", str(toy), "--explain"])
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    as_json = CliRunner().invoke(cli.application(), ["inspect", str(toy), "--explain", "--json"])
    assert json.loads(as_json.stdout)["fits"]


@pytest.mark.parametrize(
    "model_type", ["m\N{GRINNING FACE}", "", "a.b", 'a"\\', "a\nb", "\x00\x7f\x9b", "[mine]", "true"]
)
def test_an_entry_of_any_name_is_read_as_that_name(tmp_path: Path, model_type: str) -> None:
    """tomllib is the oracle of how a name is written."""
    toy = make_toy(tmp_path / "toy", "qwen2_moe")
    odd = model_type.replace(".", "") + " é"
    tensors = {name.replace("shared_expert.", f"{odd}."): value for name, value in read_tensors(toy).items()}
    write_checkpoint(tmp_path / "mine", read_config(toy) | {"model_type": model_type}, tensors)
    found = moeits.inspect(tmp_path / "mine", explain=True)
    assert found.entry is not None
    (heading, entry), *others = tomllib.loads(found.entry).items()
    assert (heading, others) == (model_type, [])
    assert any(f"{odd}." in prefix for prefix in entry["shared"])
    assert not re.search(r"[^ -~\n]", found.entry)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("defaults", r"no entry can be headed \[defaults\]"),
        ("refused", r"no entry can be headed \[refused\]"),
        ("half \ud83d", r"a character that no TOML file can hold \(U\+D83D\)"),
    ],
)
def test_of_a_name_that_no_table_can_hold_roles_are_told_and_no_entry(
    tmp_path: Path, model_type: str, said: str
) -> None:
    toy = rewritten(make_toy(tmp_path / "toy", "qwen3_moe"), model_type=model_type)
    found = moeits.inspect(toy, explain=True)
    assert (found.entry, found.fits) == (None, False)
    assert re.search(said, found.missing[0])
    assert roles(found)["model.layers.{layer}.mlp.gate.weight"] == "router"
    shown = CliRunner().invoke(cli.application(), ["inspect", str(toy), "--explain"])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "no description to start from" in shown.stdout


def test_a_dense_model_has_no_entry(tmp_path: Path) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 4}
    write_checkpoint(tmp_path / "dense", config, {"model.layers.0.mlp.up_proj.weight": np.ones((8, 4), np.float32)})
    found = moeits.inspect(tmp_path / "dense", explain=True)
    assert (found.entry, found.experts, found.known) == (None, None, False)


def test_a_plan_is_not_explained(tmp_path: Path) -> None:
    moeits.simplify(make_toy(tmp_path / "toy"), experts_per_layer=4, output=tmp_path / "out")
    with pytest.raises(SettingError, match="--explain is of a checkpoint"):
        moeits.inspect(tmp_path / "out" / "plan.json", explain=True)
    with pytest.raises(SettingError, match="--explain tells of no budget"):
        moeits.inspect(tmp_path / "out", explain=True, reduction=0.5)


def test_a_description_beside_explain_is_refused_and_which_of_the_two_is_for_what_is_said(tmp_path: Path) -> None:
    toy = rewritten(make_toy(tmp_path / "toy", "qwen3_moe"), model_type="mine")
    (tmp_path / "mine.toml").write_text('[mine]\nlike = "qwen3_moe"')
    with pytest.raises(SettingError, match=r"leave --architecture .*mine\.toml out\. Whether a checkpoint fits it"):
        moeits.inspect(toy, explain=True, architecture=tmp_path / "mine.toml")
    assert moeits.inspect(toy, architecture=tmp_path / "mine.toml").model_type == "mine"
