"""The model card: what a pruned checkpoint says of itself on the hub."""

import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import moeits
from moeits.card_slot import BEGIN, results_slot, with_results
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import CRITERIA, criterion_named
from moeits.choosing.pruning_plan import PruningPlan
from moeits.command_line.app import application
from moeits.errors import SettingError
from moeits.evaluation.results import Results
from moeits.experts.layout import MoELayout
from moeits.report_page.model_index import with_model_index
from moeits.surgery.card import Afterwards, model_card, removed_experts
from moeits.surgery.loading_card import OLDEST_TRANSFORMERS
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


def test_a_local_source_is_called_what_it_is_called_on_the_hub_also_by_what_is_made_from_it(
    tmp_path: Path, toy: Path
) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out", base_model="org/Toy-8x1B")
    card = card_of(tmp_path / "out")
    assert (card.data.base_model, card.data.base_model_relation) == ("org/Toy-8x1B", "finetune")
    assert "moeits simplify org/Toy-8x1B --criterion random" in card.text
    plan = PruningPlan.load(tmp_path / "out" / "plan.json")
    made = Afterwards("The weights were trained.", "## Healing")
    later = model_card(plan.source, tmp_path / "out", read_config(tmp_path / "out"), plan, afterwards=[made])
    assert ModelCard(later).data.base_model == "org/Toy-8x1B"
    with pytest.raises(SettingError, match="is not a hub id: give ORG/NAME"):
        moeits.simplify(toy, tau=0.5, output=tmp_path / "no", base_model="../toy")


def test_results_are_told_to_the_hub_and_other_fields_stay_as_they_were_written() -> None:
    results = Results(
        model={"source": "toy", "fingerprint": "0", "parameters": 1, "bytes": 2},
        settings={},
        versions={},
        tasks={"piqa": {"num_fewshot": 0, "acc": 0.5, "acc_norm": None}},
        perplexity={
            "nats_per_token": 2.5,
            "bits_per_byte": 1.0,
            "file": "held-out.jsonl",
            "sha256": "0",
            "window_tokens": 8,
            "documents": 1,
            "tokens": 9,
            "bytes": 9,
        },
    )
    card = "---\n# mine\nlicense: other\ntags: [a]  # of my own\n---\n# Toy\n\n---\nwords\n"
    told = with_model_index(card, "toy", results)
    found = {(each.dataset_name, each.metric_name): each.metric_value for each in ModelCard(told).data.eval_results}
    assert found == {("piqa, 0 shots", "acc"): 0.5, ("held-out.jsonl", "nats per token"): 2.5}
    assert told.replace(told[told.index("model-index") : told.index("---\n# Toy")], "") == card
    assert with_model_index(told, "toy", results) == told, "older results are replaced"
    assert with_model_index("# no front matter\n", "toy", results) == "# no front matter\n"


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
        ("per-layer", "trust_remote_code=True", "llama.cpp (after"),
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


def test_a_lowered_top_k_is_said(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, experts_per_layer=1, min_experts=1, output=tmp_path / "one")
    assert "In 3 of 3 layers fewer experts are left than the source sent a token to" in card_of(tmp_path / "one").text
    moeits.simplify(toy, experts_per_layer=2, output=tmp_path / "two")
    assert "fewer experts are left" not in card_of(tmp_path / "two").text


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


def test_what_a_criterion_removes_is_english(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = moeits.plan(moeits.score(toy), criterion="random", experts_per_layer=4)
    said = {each.name: removed_experts(replace(plan, criterion=each.name)) for each in CRITERIA}
    assert said["dern"] == "experts of little weight"
    assert said["aimer"] == "experts of the flattest weights"
    assert said["order"] == "experts last in a given order"
    assert said["stun"] == "experts close to others by their router rows"
    assert said["random"] == "randomly chosen experts"
    assert said["frequency"] == "seldom chosen experts"
    assert not [text for text in said.values() if text.startswith("of ") or text.count("experts") != 1]
    monkeypatch.setattr(type(criterion_named("random")), "chosen", "of little luck")
    moeits.prune(toy, plan=plan, output=tmp_path / "out")
    assert "with experts of little luck removed by moeits" in card_of(tmp_path / "out").text


NESTED = "---\nlicense: " + "[" * 5000 + "]" * 5000 + "\n---\n"


def test_the_control_runs_as_the_card_prints_it(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = toy.rename(tmp_path / "source")
    plan = moeits.simplify(source, tau=0.5, output=tmp_path / "out")
    (command,) = re.findall("^moeits simplify .*$", card_of(tmp_path / "out").text, re.MULTILINE)
    assert command.split()[2] == "source", "of a local checkpoint its name, not its folder"
    assert "in this folder, with the path of source in place of its name" in card_of(tmp_path / "out").text
    monkeypatch.chdir(tmp_path / "out")
    ran = CliRunner().invoke(application(), command.replace(" source ", " ../source ").split()[1:])
    assert ran.exit_code == 0, ran.output
    assert PruningPlan.load(tmp_path / "control" / "plan.json").counts == plan.counts


def test_nothing_is_said_that_nobody_did(tmp_path: Path, toy: Path) -> None:
    for layout in ("uniform", "per-layer"):
        moeits.simplify(toy, tau=0.5, output=tmp_path / layout, layout=layout)
        text = card_of(tmp_path / layout).text
        assert "by us" not in text.lower()
        assert "a sample of the bytes" in text, "the fingerprint is not a checksum of everything"
        assert all(word in text for word in ("AutoTokenizer", ".generate(", f"transformers {OLDEST_TRANSFORMERS}"))


def test_the_oldest_transformers_is_the_one_that_is_asked_for() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert f"transformers>={OLDEST_TRANSFORMERS}" in project["project"]["optional-dependencies"]["load"]


def test_a_model_of_the_hub_is_named_with_its_relation(toy: Path) -> None:
    plan = replace(moeits.plan(moeits.score(toy), tau=0.5), source="org/name@main")
    data = ModelCard(model_card(plan.source, toy, read_config(toy), plan)).data
    assert (data.base_model, data.base_model_relation) == ("org/name", "finetune")


def test_a_licence_nested_deeply_stops_nothing(tmp_path: Path, toy: Path) -> None:
    (toy / "README.md").write_text(NESTED)
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    assert card_of(tmp_path / "out").data.license is None


def test_a_measured_loss_is_not_denied_and_the_plan_is_not_all_that_was_done(toy: Path) -> None:
    plan = moeits.plan(moeits.score(toy), tau=0.5)
    trained = Afterwards("trained", "## Healing\n\n| pruned | 1.5 |")
    text = model_card("toy", toy, read_config(toy), plan, afterwards=[trained])
    assert "How much the model lost" not in text
    assert "nothing was trained" not in text
    assert "the whole recipe" not in text
    assert text.index("## Healing") < text.index(BEGIN) < text.index("## How to load it")


def test_results_fill_their_slot_and_leave_the_rest_as_it_was_edited() -> None:
    card = f"# Mine\n\nwords\n\n{results_slot('## Not measured')}\n\nmore words\n"
    filled = with_results(card, "## Results")
    assert filled == card.replace("## Not measured", "## Results")
    assert with_results(filled, "## Results") == filled
    assert with_results("# Mine\n", "## Results") == f"# Mine\n\n{results_slot('## Results')}\n"


def test_a_choice_that_is_little_better_than_chance_is_called_so(tmp_path: Path, shared: Path) -> None:
    plan = moeits.simplify(shared / "models" / "moe-tiny-mixtral", tau=1.0, output=tmp_path / "out")
    assert plan.summary["layers_on_noise_floor"] == [0, 1, 2, 3]
    text = card_of(tmp_path / "out").text
    assert "In 4 of 4 layers no pair of experts is 10% more redundant" in text
    assert "with some experts removed" in text, "not redundant ones"
    moeits.simplify(make_toy(tmp_path / "toy"), tau=1.0, output=tmp_path / "other")
    assert "better than chance" not in card_of(tmp_path / "other").text
