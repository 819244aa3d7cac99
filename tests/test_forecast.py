"""A forecast is what pruning, refitting and evaluating would find."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.calibration.settings import Tokens
from moeits.calibration.texts import windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.console.forecast import show_forecast
from moeits.errors import BudgetOutOfReach, CalibrationError, SettingError
from moeits.progress import silent
from moeits.stages.forecast import safe_reduction
from moeits.trials.sizes import Prediction
from tests.evaluation_toys import CHARACTERS, write_jsonl
from tests.trial_toys import WINDOW, make_opinionated_toy, own_text

SMALL: dict[str, Any] = {"tokens": 3200, "held_out": 1600, "window": WINDOW, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    make_opinionated_toy(folder / "toy", experts=8)
    own_text(folder / "toy", folder / "own.jsonl")
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> moeits.Forecast:
    return moeits.forecast(place / "toy", output=place / "forecast.json", **asked(place))


def asked(place: Path, **other: Any) -> dict[str, Any]:
    return {"reductions": "0.25,50%", "data": str(place / "own.jsonl"), **SMALL, **other}


def judging(place: Path) -> Path:
    """The windows that judge, a document each."""
    texts = Tokens(data=str(place / "own.jsonl"), **{k: v for k, v in SMALL.items() if k != "device"})
    windows = windows_of(Checkpoint.open(place / "toy"), texts, silent).judging
    assert (windows[:, 0] == 0).all()
    rows = [{"text": "".join(CHARACTERS[i - 2] for i in row[1:])} for row in windows.tolist()]
    return write_jsonl(place / "judging.jsonl", rows)


def test_a_forecast_is_what_prune_refit_and_evaluate_measure(place: Path, found: moeits.Forecast) -> None:
    text = judging(place)

    def measured(model: Path) -> list[Any]:
        asked_of = {"perplexity": text, "parent": place / "toy", "dtype": "float32", "device": "cpu"}
        row = moeits.evaluate(model, **asked_of).perplexity
        assert row is not None
        return [pytest.approx(row[key], abs=1e-5) for key in ("nats_per_token", "kl_to_parent", "same_first_choice")]

    def predicted(of: Prediction) -> list[float]:
        return [of.loss, of.kl_to_parent, of.same_first_choice]

    assert [found.unpruned, 0, 1] == measured(place / "toy")
    calibrated = moeits.calibrate(place / "toy", data=str(place / "own.jsonl"), **SMALL)
    for size in found.sizes:
        pruned, refitted = (place / f"{how}-{size.reduction}" for how in ("pruned", "refitted"))
        plan = moeits.plan(calibrated, reduction=size.reduction, criterion="reconstruction")
        moeits.prune(place / "toy", plan=plan, output=pruned)
        done = moeits.refit(pruned, parent=place / "toy", output=refitted, data=str(place / "own.jsonl"), **SMALL)
        assert predicted(size.pruned) == measured(pruned)
        assert predicted(size.refitted) == measured(refitted)
        assert size.accepted == done.accepted
        assert [dict(layer) for layer in size.layers] == [dict(layer) for layer in done.layers]
        assert size.pruned.rise == pytest.approx(size.pruned.loss - found.unpruned)
        assert size.pruned.low < size.pruned.rise < size.pruned.high
        assert size.summary["reduction"] >= size.reduction
    assert found.sizes[-1].accepted, "a toy on which the refit shows nothing"
    assert found.sizes[-1].refitted.rise < found.sizes[-1].pruned.rise


def test_the_file_holds_what_the_function_returns(place: Path, found: moeits.Forecast) -> None:
    assert json.loads((place / "forecast.json").read_text()) == json.loads(json.dumps(found.facts()))
    assert not list(place.glob("forecast.json.partial"))


def test_a_killed_forecast_goes_on_with_the_next_size_and_gives_the_same_bytes(
    place: Path, found: moeits.Forecast, tmp_path: Path
) -> None:
    assert found.sizes

    class Stop(Exception):
        pass

    steps: list[str] = []

    def stop(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        steps.append(stage)
        if stage == "sizes" and done == 1:
            raise Stop

    with pytest.raises(Stop):
        moeits.forecast(place / "toy", output=tmp_path / "f.json", **asked(place), progress=stop)
    fits = steps.count("refitting layers")
    again: list[str] = []
    moeits.forecast(
        place / "toy", output=tmp_path / "f.json", **asked(place), progress=lambda stage, *_: again.append(stage)
    )
    assert again.count("refitting layers") == fits
    assert (tmp_path / "f.json").read_bytes() == (place / "forecast.json").read_bytes()


def test_activations_on_disk_give_the_same_forecast_and_leave_nothing(
    place: Path, found: moeits.Forecast, tmp_path: Path
) -> None:
    spilled = moeits.forecast(place / "toy", output=tmp_path / "f.json", **asked(place), memory="16KiB")
    assert spilled.facts() == found.facts()
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_the_safe_size_is_the_last_one_before_any_interval_reaches_the_budget() -> None:
    def rise(high: float) -> Prediction:
        return Prediction(loss=5, rise=high / 2, low=0, high=high, kl_to_parent=0, same_first_choice=1)

    sizes = [(0.5, rise(0.2)), (0.25, rise(0.04)), (0.125, rise(0.01)), (0.75, rise(0.04))]
    assert safe_reduction(sizes, 0.05) == 0.25
    assert safe_reduction(sizes, 0.3) == 0.75
    assert safe_reduction(sizes, 0.01) is None


@pytest.mark.parametrize("criterion", ["moeits", "random", "aimer", "reap"])
def test_every_kind_of_criterion_can_be_forecast(place: Path, criterion: str) -> None:
    found = moeits.forecast(place / "toy", criterion=criterion, **asked(place, reductions="0.5"))
    assert found.settings["criterion"] == criterion
    assert found.sizes[0].pruned.kl_to_parent > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reductions": "0.1:0.9"}, "not a list of numbers"),
        ({"reductions": "0:1:0.0001"}, "at most 100"),
        ({"reductions": ","}, "names no size"),
        ({"reductions": "half"}, "--reductions half is not a number"),
        ({"reductions": "1.5"}, "--reductions 1.5 is out of range"),
        ({"reductions": "0.25,1"}, "above 0 and below 1"),
        ({"budget": 0.0}, "--budget 0 is out of range"),
        ({"criterion": "reab"}, "Did you mean 'reap'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(place: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        moeits.forecast(place / "toy", **asked(place, **wrong))


def test_what_cannot_be_is_said_before_anything_is_run(place: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetOutOfReach, match="out of reach"):
        moeits.forecast(place / "toy", **asked(place, reductions="0.9"))
    with pytest.raises(CalibrationError, match="tokens where"):
        moeits.forecast(place / "toy", **asked(place, tokens=10**6))
    repeated = write_jsonl(tmp_path / "repeated.jsonl", [{"text": "to be or not to be"}] * 10000)
    with pytest.raises(CalibrationError, match="in 0 different documents: each counts once"):
        moeits.forecast(place / "toy", **asked(place, data=str(repeated)))


def test_experts_that_no_token_reached_are_said(found: moeits.Forecast, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [{**layer, "unreached": [0, 3]} for layer in found.sizes[-1].layers]
    last = replace(found.sizes[-1], layers=tuple(layers))
    show_forecast(replace(found, sizes=(*found.sizes[:-1], last)), {})
    assert f"no token reached {2 * len(layers)} of the experts" in capsys.readouterr().out
    show_forecast(found, {})
    shown = capsys.readouterr().out
    assert "no token reached" not in shown
    assert f"{found.sizes[-1].pruned.rise:+.4f}" in shown
    assert "with a refit, not even 25.0% can go" in shown


def test_what_is_fitted_on_self_written_text_is_judged_by_other_text(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default too: what a model writes is too easy for a model that was fitted on it."""
    asked_for = {"reductions": "0.5", "data": "self", **SMALL, "criterion": "random"}
    told = moeits.forecast(place / "toy", judge=str(place / "own.jsonl"), **asked_for)
    assert told.data["judge"] == "own.jsonl"
    by_default = moeits.forecast(place / "toy", **asked_for)
    assert by_default.data["judge"] == "bundled"
    assert "speeches" in by_default.data["judged_by"]
    assert by_default.unpruned != told.unpruned
    assert by_default.sizes[0].layers == told.sizes[0].layers, "who judges changes no fit"
    assert by_default.sizes[0].accepted == told.sizes[0].accepted, "nor whether it is accepted"
    assert by_default.sizes[0].pruned != told.sizes[0].pruned
    show_forecast(by_default, {})
    assert "of jargon, kjv, novels, shakespeare, speeches, which nothing was fitted on" in capsys.readouterr().out
    for spelling in (place / "own.jsonl", f"{place}/../{place.name}/own.jsonl"):
        with pytest.raises(CalibrationError, match=r"--judge .*own.jsonl is fitted as well: give text"):
            moeits.forecast(place / "toy", **asked(place, judge=str(spelling)))


@pytest.mark.parametrize("command", ["forecast", "simplify", "compare-criteria"])
def test_the_model_writes_its_own_text_once(
    place: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[int] = []

    def write(*of: Any) -> np.ndarray:
        count, length = of[2:4]
        asked_for.append(count)
        return np.random.default_rng(0).integers(2, 12, (count, length))

    monkeypatch.setattr("moeits.calibration.texts._self_written", write)
    texts = {"data": "self", "tokens": SMALL["tokens"]}
    if command == "simplify":
        choice = {"criterion": "reap", "reduction": 0.5, "refit": True}
        moeits.simplify(place / "toy", output=tmp_path / "out", **choice, **texts)
    elif command == "forecast":
        moeits.forecast(place / "toy", reductions="0.5", criterion="reap", judge=None, **{**SMALL, **texts})
    else:
        text = str(place / "own.jsonl")
        moeits.compare_criteria(
            place / "toy",
            output=tmp_path / "run",
            criteria="reap",
            refit="yes",
            perplexity=text,
            limit=2,
            **SMALL,
            data="self",
        )
    assert len(asked_for) == 1
