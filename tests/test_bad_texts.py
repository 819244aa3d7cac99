"""Tokens that will not do are one sentence, said before any work; what no token reached is said, never divided by."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.choosing.criteria import CRITERIA, watches_tokens
from moeits.console.plans import show_plan
from moeits.errors import CalibrationError, EvidenceError, PlanError
from moeits.evidence import Evidence
from moeits.surgery.card import model_card
from tests.evaluation_toys import give_tokenizer, write_jsonl
from tests.toys import make_toy, read_config

SMALL: dict[str, Any] = {"tokens": 512, "held_out": 256, "window": 32, "device": "cpu"}
WATCHING = [each.name for each in CRITERIA if watches_tokens(each) and each.name != "order"]
TEXTS: dict[str, tuple[list[str] | None, str]] = {
    "missing": (None, "There is no text .*texts.jsonl. Check the path"),
    "short": ([f"abc {i}" for i in range(20)], r"has \d+ tokens where 512 are asked for, in 16 different documents"),
    "one line again and again": (
        ["the same line"] * 5000,
        "has 0 tokens where 512 are asked for, in 0 different documents",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, seed in (("toy", 0), ("other", 1)):
        make_toy(folder / name, "qwen2_moe", dtype="float32", experts=6, seed=seed)
        give_tokenizer(folder / name)
    moeits.simplify(folder / "toy", output=folder / "pruned", criterion="router-norm", experts_per_layer=4)
    return folder


@pytest.fixture(scope="module")
def signals(place: Path) -> Evidence:
    return moeits.calibrate(place / "toy", output=place / "signals.safetensors", **SMALL)


def _simplify(folder: Path, out: Path, asked: dict[str, Any]) -> object:
    few = {name: asked[name] for name in ("data", "tokens", "progress")}
    return moeits.simplify(folder / "toy", output=out, experts_per_layer=4, refit=True, **few)


def _compare(folder: Path, out: Path, asked: dict[str, Any]) -> object:
    return moeits.compare_criteria(folder / "toy", output=out, criteria="moeits", limit=2, **asked)


COMMANDS: dict[str, Callable[[Path, Path, dict[str, Any]], object]] = {
    "calibrate": lambda folder, out, asked: moeits.calibrate(folder / "toy", output=out, **asked),
    "refit": lambda folder, out, asked: moeits.refit(folder / "pruned", parent=folder / "toy", output=out, **asked),
    "forecast": lambda folder, out, asked: moeits.forecast(folder / "toy", output=out, reductions="0.5", **asked),
    "simplify": _simplify,
    "compare-criteria": _compare,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_that_will_not_do_is_said_before_any_work(command: str, text: str, place: Path, tmp_path: Path) -> None:
    documents, match = TEXTS[text]
    path = tmp_path / "texts.jsonl"
    if documents is not None:
        write_jsonl(path, [{"text": document} for document in documents])
    worked: list[str] = []
    asked = {**SMALL, "data": str(path), "progress": lambda stage, *_: worked.append(stage)}
    with pytest.raises(CalibrationError, match=match) as caught:
        COMMANDS[command](place, tmp_path / "out", asked)
    assert "\n" not in str(caught.value)
    assert set(worked) <= {"hashing every byte", "comparing with the parent"}, "that it is the parent comes first"
    assert {found.name for found in tmp_path.iterdir()} <= {"texts.jsonl"}, "nothing is left"


@pytest.mark.parametrize("command", ["refit", "forecast", "simplify", "compare-criteria"])
def test_too_few_tokens_for_a_fit_are_said_with_the_number_that_would_do(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The least that --tokens takes is enough for every toy, so an expert is sent more here.
    monkeypatch.setattr("moeits.refitting.requirements.TOKENS_OF_AN_EXPERT", 1000)
    asked = {**SMALL, "data": "bundled", "progress": lambda *_: None}
    with pytest.raises(CalibrationError, match=r"512 tokens are too few for a fit: give --tokens \d+ or more"):
        COMMANDS[command](place, tmp_path / "out", asked)


def test_signals_of_another_checkpoint_and_a_parent_that_is_not_the_plans_are_said(
    place: Path, signals: Evidence, tmp_path: Path
) -> None:
    with pytest.raises(EvidenceError, match=r"The evidence is of two checkpoints: \w+ \(.*Give files of one"):
        moeits.plan([signals, moeits.score(place / "other")], criterion="reap", experts_per_layer=4)
    plan = moeits.plan(signals, criterion="reap", experts_per_layer=4)
    with pytest.raises(PlanError, match=r"The plan was made for toy .*but other has fingerprint"):
        moeits.prune(place / "other", plan=plan, output=tmp_path / "out")
    with pytest.raises(PlanError, match=r"pruned was pruned from toy .*Give the checkpoint that it was pruned from"):
        moeits.refit(place / "pruned", parent=place / "other", output=tmp_path / "out", **SMALL)
    with pytest.raises(
        PlanError, match=r"toy has no plan\.json, so moeits did not prune it. Give the pruned checkpoint first"
    ):
        moeits.refit(place / "toy", parent=place / "pruned", output=tmp_path / "out", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("criterion", WATCHING)
def test_a_criterion_without_its_signals_says_which_command_makes_them(criterion: str, place: Path) -> None:
    with pytest.raises(
        EvidenceError, match=rf"--criterion {criterion} needs .*moeits calibrate MODEL (--[a-z-]+ [A-Z]* ?)?--output"
    ):
        moeits.plan(moeits.score(place / "toy"), criterion=criterion, experts_per_layer=4)


# Those that calibrating has to be asked for, by a flag, keep sets of experts, and have tests of their own.
@pytest.mark.parametrize("criterion", [name for name in WATCHING if name not in {"mop", "c-gnn", "moe-i2-genetic"}])
def test_experts_that_no_token_reached_go_first_and_plan_and_card_say_so(
    criterion: str, place: Path, signals: Evidence, capsys: pytest.CaptureFixture[str]
) -> None:
    unreached = {
        name: {layer: values.copy() for layer, values in each.items()} for name, each in signals.signals.items()
    }
    for name, by_layer in unreached.items():
        for layer, values in by_layer.items():
            if name.startswith(("reconstruction", "naee")):
                continue
            values[..., 4] = 0
            if layer == 0:
                values[:] = 0
    evidence = replace(signals, signals=unreached)
    with np.errstate(all="raise"):
        plan = moeits.plan(evidence, criterion=criterion, experts_per_layer=4)
        moeits.plan(evidence, criterion=criterion, reduction=0.3)
    assert plan.summary["unreached"] == {"0": [0, 1, 2, 3, 4, 5], **{str(i): [4] for i in plan.kept if i}}
    if criterion not in {"reconstruction", "naee"}:
        assert all(4 not in kept for layer, kept in plan.kept.items() if layer)
    show_plan(plan, {})
    assert "no token reached" in capsys.readouterr().out
    card = model_card("toy", place / "toy", read_config(place / "toy"), plan)
    assert "No token of the calibration reached" in card
    assert "unreached" not in moeits.plan(signals, criterion=criterion, experts_per_layer=4).summary
    assert "unreached" not in moeits.plan(evidence, criterion="random", experts_per_layer=4).summary
