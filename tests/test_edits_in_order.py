"""Several edits in one plan: each works on what the one before it made, and what cannot be together is refused."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.command_line.app import main
from moeits.edits import EDITS, PlannedEdit
from moeits.edits.in_order import edits_of, on_card
from moeits.errors import PlanError, SettingError
from moeits.evidence import Evidence
from moeits.experts.layout import MoELayout
from moeits.surgery.bits import bits_of
from tests.evaluation_toys import give_tokenizer
from tests.toys import assert_all_but_experts_are_alike, fuse, make_toy, read_tensors

SETTINGS: Mapping[str, dict[str, Any]] = {
    "average": {},
    "aligned-average": {},
    "recombine": {"min_similarity": 0.1},
    "mask": {"sparsity": "2:4", "mask_by": "magnitude"},
    "low-rank": {"mean_rank": "4", "rank_power": 0.0},
    "quantize": {"bit_widths": "3"},
}
SMALL: dict[str, Any] = {"tokens": 512, "held_out": 256, "window": 32, "device": "cpu"}


def asked(names: str) -> dict[str, Any]:
    """Flags of these edits."""
    flags: dict[str, Any] = {"edit": names}
    for name in names.split(","):
        flags |= SETTINGS[name]
    return flags


def masked(weight: np.ndarray) -> np.ndarray:
    """Of every four weights of a row the two smallest are 0."""
    made = weight.copy()
    for row in made:
        for at in range(0, len(row), 4):
            row[at + np.argsort(np.abs(row[at : at + 4]), kind="stable")[:2]] = 0
    return made


def of_rank_4(weight: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(weight.astype(np.float64))
    return sum(values[k] * np.outer(left[:, k], right[k]) for k in range(4))


def of_3_bits(weight: np.ndarray) -> np.ndarray:
    """Each row, as narrow as those of toys are, to the nearest of 8 numbers from its least to its largest."""
    made = weight.copy()
    for row, before in zip(made, weight, strict=True):
        group = 16 if len(row) % 16 == 0 else len(row)
        group = 32 if len(row) % 32 == 0 else group
        for at in range(0, len(row), group):
            part = before[at : at + group]
            low, high = min(part.min(), np.float32(0)), max(part.max(), np.float32(0))
            step = (high - low) / 7
            zero = np.rint(-low / step)
            row[at : at + group] = (np.clip(np.rint(part / step) + zero, 0, 7) - zero) * step
    return made


BY_HAND: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mask": masked,
    "low-rank": of_rank_4,
    "quantize": of_3_bits,
}
TOGETHER = (
    "average,mask",
    "aligned-average,quantize",
    "recombine,mask",
    "recombine,quantize",
    "low-rank,mask",
    "low-rank,quantize",
    "mask,quantize",
    "quantize,mask",
    "aligned-average,low-rank,mask",
)


def toy_of(form: str, folder: Path) -> Path:
    toy = make_toy(folder / "toy", form.removesuffix(" fused"))
    return fuse(toy, folder / "fused") if form.endswith("fused") else toy


@pytest.mark.parametrize("names", TOGETHER)
@pytest.mark.parametrize("form", ["qwen2_moe", "qwen2_moe fused", "gpt_oss"])
def test_each_edit_works_on_what_the_one_before_it_made(form: str, names: str, tmp_path: Path) -> None:
    toy = toy_of(form, tmp_path)
    evidence, (first, *others) = moeits.score(toy), names.split(",")
    moeits.prune(toy, plan=moeits.plan(evidence, experts_per_layer=3, **asked(first)), output=tmp_path / "by the first")
    moeits.prune(toy, plan=moeits.plan(evidence, experts_per_layer=3, **asked(names)), output=tmp_path / "by all")
    before, after = (Checkpoint.open(tmp_path / name) for name in ("by the first", "by all"))
    layout, same = MoELayout.of(after), []
    for layer in layout.layers:
        for expert in range(3):
            for projection in ("gate", "up", "down"):
                wanted = layout.read(before, layer, expert, projection)
                for name in others:
                    wanted = BY_HAND[name](wanted.astype(np.float32)).astype(wanted.dtype)
                made = layout.read(after, layer, expert, projection)
                same.append((made == wanted).mean())
                np.testing.assert_allclose(made.astype(np.float32), wanted.astype(np.float32), rtol=2**-7, atol=1e-6)
    assert np.mean(same) > 0.98, "but for the last digit of a rounding that went the other way"
    assert_all_but_experts_are_alike(tmp_path / "by the first", tmp_path / "by all")


@pytest.mark.parametrize("names", TOGETHER)
def test_two_in_one_plan_are_two_prunings_one_after_another_bit_for_bit(names: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, **asked(names))
    moeits.prune(toy, plan=plan, output=tmp_path / "at once")
    source, kept = toy, {"experts_per_layer": 3}
    for number, name in enumerate(names.split(",")):
        one = moeits.plan(moeits.score(source), **kept, **asked(name))
        moeits.prune(source, plan=one, output=tmp_path / str(number))
        source, kept = tmp_path / str(number), {"reduction": 0}
    ours, theirs = (read_tensors(folder) for folder in (tmp_path / "at once", source))
    assert {n: t.tobytes() for n, t in ours.items()} == {n: t.tobytes() for n, t in theirs.items()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evidence]:
    folder = make_toy(tmp_path_factory.mktemp("watched") / "toy", dtype="float32")
    give_tokenizer(folder)
    output = folder.parent / "signals.safetensors"
    moeits.calibrate(folder, input_norms=True, rounding_errors=True, output=output, **SMALL)
    return folder, Evidence.load(output)


def test_a_plan_says_them_in_order_replays_to_the_same_bytes_and_can_be_refitted(
    watched: tuple[Path, Evidence], tmp_path: Path
) -> None:
    toy, evidence = watched
    choice = {
        "criterion": "reap",
        "experts_per_layer": 4,
        "edit": "recombine,low-rank,mask",
        "min_similarity": 0.1,
        "mean_rank": "6",
        "sparsity": "2:4",
    }
    plan = moeits.plan(evidence, output=tmp_path / "plan.json", **choice)
    told = json.loads((tmp_path / "plan.json").read_text())["edit"]
    assert [each["name"] for each in told] == ["recombine", "low-rank", "mask"]
    assert [each["settings"] for each in told] == [{"min_similarity": 0.1}, {"mean_rank": "6"}, {"sparsity": "2:4"}]
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.to_json() == (tmp_path / "plan.json").read_text()
    moeits.prune(toy, plan=plan, output=tmp_path / "one")
    moeits.prune(toy, plan=tmp_path / "one" / "plan.json", output=tmp_path / "two")
    simplified = moeits.simplify(toy, output=tmp_path / "line", tokens=512, held_out=256, window=32, **choice)
    assert simplified.edit == plan.edit
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "line")}
    assert len(weights) == 1
    made = moeits.refit(tmp_path / "one", parent=toy, output=tmp_path / "refitted", **SMALL)
    assert all(layer["error_after"] <= layer["error_before"] for layer in made.layers)
    card = " ".join((tmp_path / "one" / "README.md").read_text().split())
    assert on_card(plan.edit) in card
    for name, said in (("recombine", "Neurons of removed"), ("low-rank", "a lower rank"), ("mask", "are zeros")):
        assert said in card, name
    assert card.index("Neurons of removed") < card.index("a lower rank") < card.index("are zeros")


def test_what_each_of_them_knows_is_what_it_knows_alone(watched: tuple[Path, Evidence]) -> None:
    """Norms, importances and errors are of the unpruned model, whatever an edit before has changed."""
    _, evidence = watched
    choice = {"criterion": "reap", "experts_per_layer": 4}
    known = {"recombine": {}, "quantize": {"bit_widths": "2,3"}, "mask": {}}
    together = moeits.plan(evidence, **choice, edit=",".join(known), bit_widths="2,3").edit
    assert together is not None
    for step, (name, settings) in zip(together.steps, known.items(), strict=True):
        assert step == moeits.plan(evidence, **choice, edit=name, **settings).edit
    plan = moeits.plan(evidence, **choice, edit="recombine,quantize", bit_widths="2,3")
    alone = moeits.plan(evidence, **choice, edit="quantize", bit_widths="2,3")
    assert bits_of(plan) == bits_of(alone)


def test_one_edit_is_written_as_it_always_was(watched: tuple[Path, Evidence]) -> None:
    _, evidence = watched
    for name in ("recombine", "mask"):
        plan = moeits.plan(evidence, criterion="reap", experts_per_layer=4, edit=name)
        assert isinstance(plan.facts()["edit"], dict)
        assert plan.facts()["edit"]["name"] == name
    whole = moeits.plan(evidence, criterion="reap", experts_per_layer=6, edit="recombine,mask")
    assert whole.edit is not None
    assert whole.edit.names == "mask", "nobody is removed, so nothing is recombined"


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        ("mask,mask", {}, "--edit mask,mask has mask twice: give every edit once"),
        ("none,mask", {}, "--edit none,mask has none beside others: leave it out"),
        ("mask,", {}, "--edit mask, has an empty name: give names of edits, with one comma between two"),
        (",mask", {}, "--edit ,mask has an empty name"),
        ("mask,quantise", {}, "There is no edit 'quantise'. Did you mean 'quantize'"),
        ("average,recombine", {}, "puts removed experts into those that stay twice, by average and by recombine: give"),
        ("mask,quantize,average", {}, r"average after an edit .* give average,mask,quantize\."),
        ("mask,low-rank", {}, r"lose what mask does, for low-rank fills its zeros: give low-rank,mask, or one of"),
        ("quantize,low-rank", {}, r"low-rank makes other numbers of its few: give low-rank,quantize"),
        (
            "mask,quantize",
            {},
            r"quantize fills its zeros where an expert has 1 bit \(--bit-widths 2,3 has none\): give quant",
        ),
        ("mask,quantize", {"min_similarity": 0.5}, "--edit mask,quantize has no setting min_similarity: leave --min-s"),
        ("low-rank,mask", {"sparsity": "5:4"}, "--sparsity '5:4' is out of range"),
        ("low-rank,mask", {"mean_rank": "200%"}, "--mean-rank '200%' is out of range"),
        ("recombine,quantize", {"bits": 9.0}, "--bits 9.0 is met by no width of --bit-widths 1,2,3"),
    ],
)
def test_edits_that_do_not_go_together_are_one_sentence_before_any_work(
    names: str, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    toy = make_toy(tmp_path / "toy")
    with pytest.raises(SettingError, match=sentence) as found:
        moeits.simplify(toy, experts_per_layer=3, edit=names, output=tmp_path / "out", **settings)
    assert str(found.value).count(". ") <= 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--edit low-rank --mean-rank 101%", "--mean-rank '101%' is out of range"),
        ("--edit low-rank --mean-rank 0", "--mean-rank '0' is out of range"),
        ("--edit recombine,low-rank --rank-power -1", "--rank-power -1.0 is out of range"),
        ("--edit mask --sparsity 1.5", "--sparsity '1.5' is out of range"),
        ("--edit average,mask --sparsity 4:2", "--sparsity '4:2' is out of range"),
        ("--edit quantize --bits 0.5", "--bits 0.5 is met by no width of --bit-widths 1,2,3"),
        ("--edit quantize --bit-widths 3 --bits 2", "--bits 2.0 is met by no width of --bit-widths 3"),
        ("--edit quantize --bits 1", "--bits 1.0 cannot be met in layer 0"),
        ("--edit mask,quantize --bit-widths 1,9", "--bit-widths '1,9' is out of range"),
        ("--edit mask,mask", "has mask twice: give every edit once"),
    ],
)
def test_at_the_command_line_what_is_out_of_range_ends_with_a_sentence_and_no_plan(
    words: str,
    sentence: str,
    watched: tuple[Path, Evidence],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evidence, plan = watched[0].parent / "signals.safetensors", tmp_path / "plan.json"
    asked = ["--criterion", "reap", "--experts-per-layer", "4", *words.split(), "--output", str(plan)]
    monkeypatch.setattr(sys, "argv", ["moeits", "plan", str(evidence), *asked])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not plan.exists()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ([], "`edit` is a list of no edits: leave it out"),
        ([{"name": "mask"}, {"name": "average"}], r"average after an edit of the experts that stay"),
        ([{"name": "average"}, {"name": "average"}], "has average twice"),
        ([{"name": "average"}, {"name": "masks"}], "There is no edit 'masks'"),
        ([{"name": "average"}, 3], r"edit\[1\]"),
        ([{"name": "average"}, {"name": "mask", "details": {"0": {"99": {}}}}], "expert 99 of layer 0, which is not"),
        ([{"name": "average"}, {"name": "mask", "settings": {"bits": 3}}], "--edit mask has no setting bits"),
    ],
)
def test_a_list_in_a_plan_that_cannot_be_is_refused_in_a_sentence(edit: Any, sentence: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", layers=1)
    moeits.plan(moeits.score(toy), experts_per_layer=3, output=tmp_path / "plan.json")
    text = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**text, "edit": edit}))
    with pytest.raises((PlanError, SettingError), match=sentence):
        moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_uniform_layout_of_other_experts_than_any_of_them_names_is_refused(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    plan = moeits.plan(moeits.score(toy), tau=0.5, edit="average,mask", mask_by="magnitude")
    assert len(set(plan.counts.values())) > 1
    with pytest.raises(PlanError, match=r"makes of several \(edit average,mask\)"):
        moeits.prune(toy, plan=plan, layout="uniform", output=tmp_path / "out")
    own = PlannedEdit(name="mask", settings={"mask_by": "magnitude"}, then=(PlannedEdit(name="low-rank"),))
    assert not own.ties
    assert replace(own, then=(PlannedEdit(name="low-rank", details={0: {1: {}}}),)).ties


def test_every_pair_of_edits_goes_together_in_one_order_at_least_unless_both_take_the_removed_experts() -> None:
    names = [edit.name for edit in EDITS if edit.name != "none"]
    of_several = {"average", "aligned-average", "recombine"}
    for first in names:
        for second in names:
            if first == second:
                continue
            allowed = []
            for pair in (f"{first},{second}", f"{second},{first}"):
                try:
                    allowed.append([edit.name for edit in edits_of(pair, {})])
                except SettingError:
                    continue
            assert bool(allowed) != ({first, second} <= of_several), (first, second)
