"""The model card: what a pruned checkpoint says of itself on the hub."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import criterion_named
from moeits.experts.layout import MoELayout
from tests.toys import make_toy, read_config

LICENSED = """---
license: other
license_name: toy-licence
license_link: https://example.org/licence
language: [en, de]
base_model: somebody/else
pipeline_tag: text-generation
---
# Toy
"""


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def test_the_front_matter_is_read_by_the_hubs_own_library(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out")
    data = card_of(tmp_path / "out").data
    assert data.library_name == "transformers"
    assert {"moe", "pruning", "moeits"} <= set(data.tags)
    assert data.base_model is None, "a folder of this machine is no base model that anybody could find"


def test_the_licence_of_the_source_stays_with_it(tmp_path: Path, toy: Path) -> None:
    (toy / "README.md").write_text(LICENSED)
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out")
    data = card_of(tmp_path / "out").data
    assert (data.license, data.license_name, data.language) == ("other", "toy-licence", ["en", "de"])
    assert data.license_link == "https://example.org/licence"


@pytest.mark.parametrize(
    "text", ["", "# no front matter", "---\n[1, 2]\n---\n", "---\na: [\n---\n", "---\nlicense:\n---\n", "\xff"]
)
def test_a_card_that_cannot_be_read_does_not_stop_anything(tmp_path: Path, toy: Path, text: str) -> None:
    (toy / "README.md").write_bytes(text.encode("latin-1"))
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    assert card_of(tmp_path / "out").data.license is None


@pytest.mark.parametrize(
    ("layout", "says", "never"),
    [
        ("per-layer", "trust_remote_code=True", "vLLM, SGLang, llama.cpp (after"),
        ("uniform", "without remote code", "trust_remote_code"),
    ],
)
def test_how_to_load_it_is_how_it_loads(tmp_path: Path, toy: Path, layout: str, says: str, never: str) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out", layout=layout)
    text = card_of(tmp_path / "out").text
    assert says in text
    assert never not in text
    assert ("per_layer_config" in read_config(tmp_path / "out")) == (layout == "per-layer")


def test_the_numbers_are_those_of_the_checkpoint_beside_it(tmp_path: Path, toy: Path) -> None:
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "out")
    text = card_of(tmp_path / "out").text
    after = Checkpoint.open(tmp_path / "out")
    assert f"| parameters | {Checkpoint.open(toy).parameters:,} | {after.parameters:,} |" in text
    for layer, moe in MoELayout.of(after).layers.items():
        assert f"| {layer} | 6 | {moe.num_experts} |" in text
        assert moe.num_experts == len(plan.kept[layer])
    assert f"{plan.summary['reduction']:.2%}" in text
    assert "tau 0.5" in text


def test_a_card_names_no_folder_of_the_machine(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["näme", "a: b", "# heading", "--- x"])
def test_odd_names_break_nothing(tmp_path: Path, name: str) -> None:
    moeits.simplify(make_toy(tmp_path / name), experts_per_layer=4, output=tmp_path / "out")
    assert card_of(tmp_path / "out").data.library_name == "transformers"
    assert name in (tmp_path / "out" / "README.md").read_text()


def test_what_was_not_measured_is_said(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    text = card_of(tmp_path / "out").text
    assert "nothing was trained" in text
    assert "How much the model lost" in text


def test_the_control_does_not_pass_for_the_method(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, criterion="random", experts_per_layer=4, output=tmp_path / "random")
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "moeits")
    assert "randomly chosen experts removed" in card_of(tmp_path / "random").text
    assert "with redundant experts removed" in card_of(tmp_path / "moeits").text


def test_the_card_and_the_config_name_the_checkpoint_that_was_pruned_and_not_the_plans(
    tmp_path: Path, toy: Path
) -> None:
    plan = moeits.plan(moeits.score(toy), tau=0.5)
    copied = shutil.copytree(toy, tmp_path / "my-copy")
    done = moeits.prune(copied, plan=plan, output=tmp_path / "out")
    assert "The local checkpoint my-copy with" in card_of(tmp_path / "out").text
    assert done.source == read_config(tmp_path / "out")["moeits"]["source"] == "my-copy"


def test_a_choice_by_hand_does_not_pass_for_a_criterions(tmp_path: Path, toy: Path) -> None:
    plan = moeits.plan(moeits.score(toy), tau=-100.0)
    assert plan.summary["floored_layers"] == [0, 1, 2]
    moeits.prune(toy, plan=plan, output=tmp_path / "as planned")
    assert "edited by hand" not in card_of(tmp_path / "as planned").text
    first = plan.order[0][0][0]
    kept = {**plan.kept, 0: tuple(sorted({first, *plan.kept[0]}))}
    done = moeits.prune(toy, plan=replace(plan, kept=kept), output=tmp_path / "edited")
    assert "**The kept experts were edited by hand:**" in card_of(tmp_path / "edited").text
    assert done.summary["floored_layers"] == [1, 2]


def test_what_a_criterion_removes_is_called_as_it_says(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(criterion_named("random")), "chosen", "unlucky")
    moeits.simplify(toy, criterion="random", experts_per_layer=4, output=tmp_path / "out")
    assert "with unlucky experts removed" in card_of(tmp_path / "out").text


def test_a_choice_that_is_little_better_than_chance_is_called_so(tmp_path: Path, shared: Path) -> None:
    plan = moeits.simplify(shared / "models" / "moe-tiny-mixtral", tau=1.0, output=tmp_path / "out")
    assert plan.summary["layers_on_noise_floor"] == [0, 1, 2, 3]
    assert "In 4 of 4 layers no pair of experts is 10% more redundant" in card_of(tmp_path / "out").text
    moeits.simplify(make_toy(tmp_path / "toy"), tau=1.0, output=tmp_path / "other")
    assert "better than chance" not in card_of(tmp_path / "other").text
