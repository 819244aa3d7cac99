"""What is wrong with a family, its description or its release is one sentence, before any work; nothing is written.

By the command line, as a user does it; nothing is scored, and the folder is compared before and after.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moeits
from moeits.experts.families import REFUSED
from tests.packed import raw_tensors, write_packed
from tests.test_bad_input import Shell
from tests.toys import fuse, make_toy, read_config, read_tensors, write_checkpoint

MOE = "model.layers.0.mlp."
ROUTER = MOE + "gate.weight"
FOUR = ("--experts-per-layer", "4")
MINE = ("--architecture", "mine.toml")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    def scored(*_: Any, **__: Any) -> None:
        raise AssertionError("this costs minutes on a real model, and could have been said before")

    monkeypatch.setattr(importlib.import_module("moeits.stages.simplify"), "scored", scored)
    return Shell(tmp_path, monkeypatch, capsys)


def refused(shell: Shell, saying: str, *flags: str) -> None:
    shell.refuses("simplify", "toy", *(flags or FOUR), "--output", "out", saying=saying)


def as_type(toy: Path, model_type: str, **changes: Any) -> Path:
    (toy / "config.json").write_text(json.dumps(read_config(toy) | {"model_type": model_type} | changes))
    return toy


# ---------------------------------------------------------------------------------------------- families


def test_a_family_that_is_not_in_the_table(shell: Shell, tmp_path: Path) -> None:
    as_type(make_toy(tmp_path / "toy", "qwen3_moe"), "novel_moe")
    refused(shell, "No architecture 'novel_moe'.")
    refused(shell, "moeits inspect MODEL --explain prints a description to start from, for --architecture.")


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_that_is_known_and_not_pruned(shell: Shell, tmp_path: Path, model_type: str) -> None:
    as_type(make_toy(tmp_path / "toy", "qwen3_moe"), model_type)
    refused(shell, f"cannot prune a {model_type} checkpoint: {REFUSED[model_type]}. docs/architectures.md lists")


def test_encoder_decoder_models_are_said_to_be_not_pruned_yet() -> None:
    from transformers import CONFIG_MAPPING

    two_stacks = {name for name in REFUSED if name in CONFIG_MAPPING and CONFIG_MAPPING[name]().is_encoder_decoder}
    assert two_stacks == {"nllb-moe", "switch_transformers"}
    assert all("encoder-decoder models are not pruned yet" in REFUSED[name] for name in two_stacks)


def with_more_rows(toy: Path, folder: Path, more: int) -> Path:
    wide = {
        name: np.concatenate([value, value[:more]]) if name == ROUTER else value
        for name, value in read_tensors(toy).items()
    }
    return write_checkpoint(folder, read_config(toy), wide)


def test_more_rows_of_a_router_than_experts_that_nothing_explains(shell: Shell, tmp_path: Path) -> None:
    toy = with_more_rows(make_toy(tmp_path / "made", "qwen3_moe"), tmp_path / "toy", 2)
    refused(shell, f"{ROUTER} has shape [8, 32], but layer 0 has 6 experts by config.json.")
    as_type(toy, "mine")
    (tmp_path / "mine.toml").write_text('[mine]\nlike = "qwen3_moe"\nextra_rows = { "gate.weight" = 1 }')
    refused(shell, "has 8 entries, but layer 0 has 6 experts and 1 entries for others", *FOUR, *MINE)


def test_a_wrapper_with_two_parts_that_have_experts(shell: Shell, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "made", "qwen3_moe")
    tensors, part = read_tensors(toy), read_config(toy)
    both = {name.replace("model.", of, 1): value for of in ("one.", "two.") for name, value in tensors.items()}
    write_checkpoint(tmp_path / "toy", {"model_type": "mine", "text_config": part, "ear_config": part}, both)
    refused(shell, "a Mixture of Experts in its text_config (qwen3_moe) and in its ear_config (qwen3_moe).")
    entry = '[mine]\nlike = "qwen3_moe"\npart = "text_config"\nprefixes = ["one.", "two."]'
    (tmp_path / "mine.toml").write_text(entry)
    refused(shell, "has a MoE block under one.layers.0.mlp and another under two.layers.0.mlp", *FOUR, *MINE)


# ---------------------------------------------------------------------------------------------- groups and layouts


def test_counts_that_break_the_groups_of_a_router(shell: Shell, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "deepseek_v3", n_group=2, topk_group=1)
    refused(shell, "--experts-per-layer 5 ", "--experts-per-layer", "5")
    plan = moeits.plan(moeits.score(toy), experts_per_layer=4)
    first = min(plan.kept)
    facts = replace(plan, kept={**plan.kept, first: (0, 1, 2, 3)}, order={}).facts()
    (tmp_path / "plan.json").write_text(json.dumps(facts))
    shell.refuses("prune", "toy", "--plan", "plan.json", "--output", "out", saying=("group", f"layer {first}"))
    as_type(toy, "deepseek_v3", n_group=4)
    refused(shell, "config.json puts 6 experts into 4 groups, which cannot be of equal size.")


OF_HASHES: Mapping[str, Any] = {"model_type": "deepseek_v4"}
UNIFORM = (*FOUR, "--layout", "uniform")
ON_HUB = '[mine]\nlike = "{}"\nclass_on_hub = true'
NO_OTHER = "The code that the checkpoint brings reads no other, so it cannot be pruned."

# What a layout cannot express -> (family of the toy, changes of its config, the description, flags, the sentence).
LAYOUTS: Mapping[str, tuple[str, Mapping[str, Any], str, tuple[str, ...], str]] = {
    "one number where a table of tokens chooses": (
        "deepseek_v4", {}, "", UNIFORM, "a table of tokens chooses them, all stay (layers 0). Use --layout per-layer.",
    ),
    "the same, under code that each checkpoint brings": (
        "deepseek_v4", {}, ON_HUB.format("deepseek_v4"), FOUR, f"all stay (layers 0). {NO_OTHER}",
    ),
    "one top_k where layers have several": (
        "hunyuan_v1_moe", {"moe_topk": [2, 1, 2]}, "", UNIFORM,
        "but those of this checkpoint have 1 and 2. Use --layout per-layer.",
    ),
    "the same, under code again": (
        "hunyuan_v1_moe", {"moe_topk": [2, 1, 2]}, ON_HUB.format("hunyuan_v1_moe"), FOUR,
        f"but those of this checkpoint have 1 and 2. {NO_OTHER}",
    ),
    "unequal numbers under code that reads one": (
        "qwen3_moe", {}, ON_HUB.format("qwen3_moe"), ("--tau", "1", "--layout", "per-layer"),
        "--layout per-layer needs a class of transformers whose layers can be resized, and has none for mine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_that_the_router_or_the_class_cannot_express(shell: Shell, tmp_path: Path, case: str) -> None:
    model_type, changes, description, flags, sentence = LAYOUTS[case]
    toy = make_toy(tmp_path / "toy", model_type, **changes)
    if description:
        as_type(toy, "mine")
        (tmp_path / "mine.toml").write_text(description)
    refused(shell, sentence, *flags, *(MINE if description else ()))


@pytest.mark.parametrize("on_hub", [False, True])
def test_what_is_not_evened_out_is_offered_unequal_layers_only_where_they_can_be(
    shell: Shell, tmp_path: Path, on_hub: bool
) -> None:
    toy = as_type(make_toy(tmp_path / "toy", "qwen3_moe"), "mine")
    (tmp_path / "mine.toml").write_text(f'[mine]\nlike = "qwen3_moe"\nclass_on_hub = {str(on_hub).lower()}')
    plan = moeits.plan(moeits.score(toy, architecture=tmp_path / "mine.toml"), experts_per_layer=4)
    facts = replace(plan, kept={**plan.kept, 0: (0, 1, 2)}, order={}).facts()
    (tmp_path / "plan.json").write_text(json.dumps(facts))
    asked = ("prune", "toy", "--plan", "plan.json", "--layout", "uniform", "--output", "out")
    said = shell.refuses(*asked, saying="(was it edited by hand?). Plan with --experts-per-layer")
    assert said.rstrip().endswith(
        "--experts-per-layer." if on_hub else "--experts-per-layer, or use --layout per-layer."
    )
    if not on_hub:
        moeits.prune(toy, plan=tmp_path / "plan.json", layout="per-layer", output=tmp_path / "out")


# ---------------------------------------------------------------------------------------------- releases


def packed_router(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("mlp.gate.weight")]:
        del tensors[name]
        tensors[name.replace("weight", "qweight")] = torch.zeros(4, 6, dtype=torch.int32)
        tensors[name.replace("weight", "qzeros")] = torch.zeros(1, 1, dtype=torch.int32)


def scales_over_rows(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("mlp.gate.weight")]:
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1, 2)


def one_pile(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".experts." in name]:
        entries = tensors[name].numel()
        tensors[name] = torch.zeros(entries // 2, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"] = torch.ones(entries // 64)


@pytest.mark.parametrize("pack", [packed_router, scales_over_rows, one_pile])
def test_what_was_quantized_across_experts(
    shell: Shell, tmp_path: Path, pack: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    toy = fuse(make_toy(tmp_path / "made", "qwen3_moe"), tmp_path / "fused")
    tensors = raw_tensors(toy)
    pack(tensors)
    write_packed(tmp_path / "toy", read_config(toy), tensors)
    refused(shell, "what was quantized across experts cannot be cut at their borders. Prune a release that keeps")


# ---------------------------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[mine]\nexpertz = 1", "object contains unknown field `expertz`"),
        ("[mine]\nlayers.frm = 3", "object contains unknown field `frm` - at `$.layers`"),
        ("[mine]\nlayers.but = { key = 'a', absnt = [1] }", "unknown field `absnt` - at `$.layers.but`"),
    ],
)
def test_a_table_with_keys_that_nobody_knows(shell: Shell, tmp_path: Path, text: str, sentence: str) -> None:
    as_type(make_toy(tmp_path / "toy", "qwen3_moe"), "mine")
    (tmp_path / "mine.toml").write_text(text)
    refused(shell, sentence, *FOUR, *MINE)
    refused(shell, "docs/extending.md lists the keys.", *FOUR, *MINE)
