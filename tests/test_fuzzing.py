"""Wrong inputs of every kind, a few thousand of them; `python -m tests.fuzzing` is the long form."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

import moeits
from moeits.errors import CheckpointError, EvaluationError, EvidenceError, SettingError
from moeits.evidence import Evidence
from moeits.experts.families import ARCHITECTURES
from moeits.healing.recipe import recipe_named
from moeits.stages.compare import compare
from moeits.stages.inspect import inspect
from moeits.stages.report import report
from tests import runs
from tests.fuzzing.running import LONGEST_CALL, fuzz
from tests.fuzzing.targets import PARSERS
from tests.toys import make_toy, toy_evidence

# Those whose stage takes tens of milliseconds.
FEWER = {
    **{"healing": 20, "footprint": 20, "ledger": 20, "sweep": 20, "run": 60, "cli": 80},
    **{
        "quantizer": 100,
        "packed": 100,
        "edits": 100,
        "opened": 60,
        "finished": 60,
        "watched": 30,
        "fitted": 20,
        "calibration": 100,
    },
}
# What a killed run left and was damaged since is not used; nobody is asked to do anything about it.
DONE_AGAIN = {"finished", "watched", "fitted"}
# A file of one point of a run that is damaged is a row of the report, which says why.
LEFT_OUT = {"healing", "footprint"}


@pytest.mark.parametrize("name", PARSERS)
def test_of_a_wrong_input_nothing_but_a_sentence_comes_out(name: str, tmp_path: Path) -> None:
    tally = fuzz(PARSERS[name](tmp_path), FEWER.get(name, 300), seed=13)
    assert not tally.faults, tally.faults[0]
    assert tally.longest < LONGEST_CALL
    if name in DONE_AGAIN | LEFT_OUT:
        assert tally.accepted == tally.inputs
    else:
        assert tally.refused > 0, "the mutants are all valid"


def test_an_index_that_names_a_file_longer_than_any_is_refused(tmp_path: Path) -> None:
    model = make_toy(tmp_path / "toy", shards=2)
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "' + "x" * 5000 + '"}}')
    with pytest.raises(CheckpointError, match="not a plain file name"):
        inspect(model)


def test_evidence_of_half_floats_is_compared_with_bounds_that_they_cannot_hold(tmp_path: Path) -> None:
    matrix = np.full((4, 4), 0.25, np.float16) * (1 - np.eye(4, dtype=np.float16))
    toy_evidence({0: matrix}, floor={0: matrix}).save(tmp_path / "evidence.safetensors")
    assert Evidence.load(tmp_path / "evidence.safetensors").floor[0].dtype == np.float64


def test_signals_of_half_floats_are_compared_with_a_bound_that_they_cannot_hold(tmp_path: Path) -> None:
    scored = moeits.score(make_toy(tmp_path / "toy", experts=4, layers=2), signals="aimer")
    halves = {layer: values.astype(np.float16) for layer, values in scored.signals["aimer"].items()}
    replace(scored, signals={"aimer": halves}).save(tmp_path / "evidence.safetensors")
    assert Evidence.load(tmp_path / "evidence.safetensors").signals["aimer"][0].dtype == np.float64


@pytest.mark.parametrize(
    ("criterion", "signal"), [("aimer", "aimer"), ("reap", "reap"), ("router-cosine", "router-cosine")]
)
def test_a_signal_of_the_wrong_rank_is_refused_by_the_criterion_that_reads_it(
    criterion: str, signal: str, tmp_path: Path
) -> None:
    scored = moeits.score(make_toy(tmp_path / "toy", experts=4, layers=2))
    wrong = np.zeros(4 if signal == "router-cosine" else (4, 4))
    with pytest.raises(EvidenceError, match=f"{signal} of layer 0 has 4"):
        moeits.plan(
            replace(scored, signals={signal: dict.fromkeys(scored.layers, wrong)}), criterion=criterion, reduction=0.3
        )


@pytest.mark.parametrize("name", ["finished", "watched", "fitted"])
def test_of_a_finished_layer_that_lacks_a_part_the_layer_is_done_again(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name](tmp_path)
    arrays = load(parser.valid[0])
    for lost in arrays:
        parser.feed(save({other: values for other, values in arrays.items() if other != lost} | {"more": np.zeros(2)}))


@pytest.mark.parametrize("change", [{"rank": "9"}, {"alpha": [1]}, {"targets": 5}, {"steps": 10**400}, {"packing": 1}])
def test_a_recipe_of_other_types_is_refused_in_a_sentence(change: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"--{next(iter(change))} is not"):
        recipe_named("small", ARCHITECTURES[0]).changed(change)


@pytest.mark.parametrize("setting", [{"min_experts": 10**400}, {"criterion": ["moeits"]}])
def test_settings_of_a_sweep_that_nobody_could_have_asked_for_leave_the_report_standing(
    setting: dict[str, object], tmp_path: Path
) -> None:
    run = runs.swept(make_toy(tmp_path / "toy"), tmp_path / "run", "1")
    sweep = json.loads((run / "sweep.json").read_text())
    sweep["settings"] |= setting
    runs.write(run / "sweep.json", sweep)
    report(run, output=tmp_path / "report.md", format="md")
    assert (tmp_path / "report.md").read_text()


def test_perplexities_of_unlike_many_documents_are_not_compared(tmp_path: Path) -> None:
    value = runs.results(0.5, parameters=1000, nbytes=2000)
    runs.write(tmp_path / "a.json", value)
    units = value["samples"]["perplexity"]
    value["samples"]["perplexity"] = {name: column[:-1] for name, column in units.items()}
    runs.write(tmp_path / "b.json", value)
    with pytest.raises(EvaluationError, match="different documents"):
        compare(tmp_path / "a.json", tmp_path / "b.json", resamples=100)
