"""A comparison of criteria is what the commands find one by one, on the same counts, done once and never again."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import moeits
from moeits.choosing.criteria import CRITERIA
from moeits.criteria_file import CriteriaRow, shown_rows
from moeits.errors import BudgetOutOfReach, CalibrationError, EvaluationError, SettingError
from moeits.trials.settings import Contest
from tests.evaluation_toys import write_jsonl
from tests.trial_toys import WINDOW, make_opinionated_toy, own_text

SMALL: dict[str, Any] = {"tokens": 3200, "held_out": 1600, "window": WINDOW, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("criteria")
    make_opinionated_toy(folder / "toy", experts=8)
    own_text(folder / "toy", folder / "own.jsonl")
    own_text(folder / "toy", folder / "judging.jsonl", documents=40, seed=1)
    return folder


def asked(place: Path, **other: Any) -> dict[str, Any]:
    texts = {"data": str(place / "own.jsonl"), "perplexity": str(place / "judging.jsonl")}
    return {"criteria": "moeits,random:2,reap", **texts, **SMALL, **other}


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    moeits.compare_criteria(place / "toy", output=place / "run", **asked(place))
    return place / "run"


def rows_of(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["name"], row["state"]): row for row in json.loads((run / "criteria.json").read_text())["rows"]}


def test_every_choice_keeps_as_many_experts_in_every_layer(run: Path) -> None:
    plans = [moeits.PruningPlan.load(path) for path in run.glob("*/plan.json")]
    assert sorted(plan.criterion for plan in plans) == ["moeits", "random", "random", "reap"]
    assert {count for plan in plans for count in plan.counts.values()} == {4}
    assert len({json.dumps(plan.facts()["kept"]) for plan in plans}) == 4, "choices that do not differ"


def test_a_row_is_what_the_commands_find_one_by_one(place: Path, run: Path, tmp_path: Path) -> None:
    calibrated = moeits.calibrate(place / "toy", data=str(place / "own.jsonl"), **SMALL)
    plan = moeits.plan(calibrated, criterion="reap", experts_per_layer=4)
    moeits.prune(place / "toy", plan=plan, output=tmp_path / "pruned")
    data = str(place / "own.jsonl")
    done = moeits.refit(tmp_path / "pruned", parent=place / "toy", output=tmp_path / "refitted", data=data, **SMALL)
    asked_of = {"perplexity": place / "judging.jsonl", "dtype": "float32", "device": "cpu"}
    whole = moeits.evaluate(place / "toy", **asked_of)
    rows = rows_of(run)
    for state in ("pruned", "refitted"):
        found = moeits.evaluate(tmp_path / state, **asked_of)
        difference = moeits.compare(whole, found).perplexity["nats_per_token"]
        row = rows["reap", state]
        assert [row[key] for key in ("nats_per_token", "rise", "low", "high")] == [
            pytest.approx(value, abs=1e-6)
            for value in (difference.b, difference.difference, difference.low, difference.high)
        ]
    assert rows["reap", "refitted"]["accepted"] == done.accepted
    text = json.loads((run / "criteria.json").read_text())["text"]
    assert whole.perplexity is not None
    assert text["nats_per_token"] == whole.perplexity["nats_per_token"]


def test_a_row_says_what_it_took(run: Path) -> None:
    rows = rows_of(run)
    for row in rows.values():
        assert row["cost"]["seconds"] > 0
        assert row["cost"]["joules"] is None, "energy was not asked for"
    ledger = json.loads((run / "ledger.json").read_text())["entries"]
    seconds = {entry["stage"]: entry["seconds"] for entry in ledger if entry["point"] is None}
    assert rows["moeits", "pruned"]["cost"]["seconds"] > seconds["scoring"]
    assert rows["reap", "pruned"]["cost"]["seconds"] > seconds["calibrating"]
    assert rows["reap", "pruned"]["cost"]["tokens"] == SMALL["tokens"]
    assert rows["random-0", "pruned"]["cost"]["tokens"] == 0
    assert rows["random-0", "refitted"]["cost"]["tokens"] == SMALL["tokens"] + SMALL["held_out"]
    assert rows["random-0", "refitted"]["cost"]["data"] == ["own.jsonl"]
    if sys.platform == "linux":
        assert all(row["cost"]["peak_bytes"] for row in rows.values())


def test_nothing_is_left_but_files_of_the_run(run: Path) -> None:
    assert not list(run.rglob("model*.safetensors"))
    assert not [path for path in run.rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_what_is_finished_is_not_done_again_and_criteria_are_added(
    place: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == "rows of the comparison" and done == 4:
            raise Stop

    again = tmp_path / "again"
    with pytest.raises(Stop):
        moeits.compare_criteria(place / "toy", output=again, **asked(place), progress=stop)
    with pytest.raises(SettingError, match="other settings"):
        moeits.compare_criteria(place / "toy", output=again, **asked(place, limit=5))
    moeits.report(again, output=tmp_path / "unfinished.html")
    assert "has not been finished" in (tmp_path / "unfinished.html").read_text()
    of_run = {"ledger.json", "criteria.json"}
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*.json") if path.name not in of_run}
    assert len(before) > 5
    record = sys.modules["moeits.trials.record"]
    for name in ("score", "calibrated"):
        monkeypatch.setattr(record, name, lambda *_, **__: pytest.fail("done twice"))
    moeits.compare_criteria(place / "toy", output=again, **asked(place))
    assert {path: path.stat().st_mtime_ns for path in before} == before

    def without_cost(folder: Path) -> dict[tuple[str, str], Any]:
        return {name: {k: v for k, v in row.items() if k != "cost"} for name, row in rows_of(folder).items()}

    assert without_cost(again) == without_cost(run)
    added = moeits.compare_criteria(place / "toy", output=again, **asked(place, criteria="frequency", refit="no"))
    assert {row["criterion"] for row in added.found["rows"]} == {"moeits", "random", "reap", "frequency"}


def test_another_model_or_other_settings_are_refused_and_fresh_begins_anew(place: Path, tmp_path: Path) -> None:
    few = asked(place, criteria="random", refit="no")
    moeits.compare_criteria(place / "toy", output=tmp_path / "run", **few)
    other = make_opinionated_toy(tmp_path / "other", experts=8, seed=3)
    with pytest.raises(SettingError, match=r"another checkpoint \(toy\).*--fresh"):
        moeits.compare_criteria(other, output=tmp_path / "run", **few)
    with pytest.raises(SettingError, match=r"other settings \(keep\).*--fresh"):
        moeits.compare_criteria(place / "toy", output=tmp_path / "run", **few, keep="75%")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    moeits.compare_criteria(place / "toy", output=tmp_path / "run", **few, keep="75%", fresh=True)
    plan = moeits.PruningPlan.load(tmp_path / "run" / "random-0" / "plan.json")
    assert set(plan.counts.values()) == {6}
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_folder_is_of_a_sweep_or_of_a_comparison(place: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds a comparison of criteria"):
        moeits.sweep(place / "toy", tau="1", output=run)
    moeits.sweep(place / "toy", tau="1", output=tmp_path / "sweep")
    with pytest.raises(SettingError, match="holds a sweep"):
        moeits.compare_criteria(place / "toy", output=tmp_path / "sweep", **asked(place))
    moeits.report([run, tmp_path / "sweep"], output=tmp_path / "both.html")
    assert "Criteria at one size" in (tmp_path / "both.html").read_text()


def test_seeds_of_a_random_choice_are_shown_as_their_mean_with_the_least_and_the_most() -> None:
    def row(seed: int, rise: float) -> CriteriaRow:
        cost = {"seconds": 2.0 * seed, "joules": None, "peak_bytes": seed, "tokens": 0, "data": []}
        of = {"name": f"random-{seed}", "criterion": "random", "seed": seed, "state": "pruned", "accepted": None}
        return {**of, "nats_per_token": 4 + rise, "rise": rise, "low": rise - 9, "high": rise + 9, "cost": cost}  # type: ignore[typeddict-item]

    (shown,) = shown_rows([row(0, 0.1), row(1, 0.4), row(2, 0.4)])
    assert (shown.label, shown.low, shown.high) == ("random, 3 seeds", 0.1, 0.4)
    assert (shown.rise, shown.loss) == (pytest.approx(0.3), pytest.approx(4.3))
    assert (shown.seconds, shown.peak_bytes) == (2.0, 2)


def test_criteria_are_named_once_each_and_random_ones_by_their_seeds() -> None:
    assert Contest(criteria="reap, random:2,reap,random").entrants == (("reap", None), ("random", 0), ("random", 1))
    everyone = dict.fromkeys(name for name, _ in Contest(criteria="all").entrants)
    assert set(everyone) == {criterion.name for criterion in CRITERIA} - {"order"}
    assert Contest(criteria="all,random:9").entrants[-1] == ("random", 8)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"criteria": "reab"}, "Did you mean 'reap'"),
        ({"criteria": "reap:3"}, "is not random, so it takes no seeds"),
        ({"criteria": "random:0"}, "is out of range"),
        ({"criteria": "random:x"}, "is not a number"),
        ({"criteria": " ,"}, "names no criterion"),
        ({"keep": "1"}, "--keep 1 is out of range"),
        ({"keep": "some"}, "--keep some is not a number"),
        ({"refit": "maybe"}, "--refit maybe is not one of"),
    ],
)
def test_a_wrong_setting_is_one_sentence(place: Path, tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        moeits.compare_criteria(place / "toy", output=tmp_path / "run", **asked(place, **wrong))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_is_said_before_anything_is_made(place: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetOutOfReach):
        moeits.compare_criteria(place / "toy", output=tmp_path / "run", **asked(place, keep="0.1"))
    with pytest.raises(EvaluationError, match="There is no text"):
        moeits.compare_criteria(place / "toy", output=tmp_path / "run", **asked(place, perplexity=tmp_path / "none"))
    assert not (tmp_path / "run").exists()
    repeated = write_jsonl(tmp_path / "repeated.jsonl", [{"text": "to be or not to be"}] * 10000)
    with pytest.raises(CalibrationError, match="in 0 different documents: each counts once"):
        moeits.compare_criteria(place / "toy", output=tmp_path / "run", **asked(place, data=str(repeated)))


def test_the_run_opens_in_a_report_as_a_table_and_a_plot(run: Path, tmp_path: Path) -> None:
    moeits.report(run, output=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Criteria at one size" in page
    assert 'aria-label="Rise of the loss over the unpruned model for 3 choices."' in page
    moeits.report(run, output=tmp_path / "report.md", format="md")
    lines = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| ")]
    assert lines[2].startswith("| unpruned |")
    rows = rows_of(run)
    shown = next(line for line in lines if line.startswith("| reap | pruned"))
    assert f"| {rows['reap', 'pruned']['rise']:+.3f} |" in shown
    assert "joules" not in lines[0], "nobody measured any"
    assert any(line.startswith("| random, 2 seeds |") for line in lines)


def test_choices_are_healed_on_request_and_of_the_random_ones_the_first(place: Path, tmp_path: Path) -> None:
    few = asked(place, criteria="random:2,reap", heal=str(place / "own.jsonl"), steps=2)
    made = moeits.compare_criteria(place / "toy", output=tmp_path / "run", **few)
    healed = {(row["name"], row["state"]) for row in made.found["rows"] if row["state"].endswith("healed")}
    assert healed == {(name, state) for name in ("random-0", "reap") for state in ("healed", "refitted, healed")}
    assert not list((tmp_path / "run").rglob("model*.safetensors"))
