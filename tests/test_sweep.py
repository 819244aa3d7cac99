"""A sweep is the plans of its taus, and never does anything twice."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moeits
from moeits.errors import OutputError, SettingError
from moeits.sweep import parse_taus
from tests.toys import make_toy


def test_each_point_is_the_plan_of_its_tau(toy: Path, tmp_path: Path) -> None:
    run = moeits.sweep(toy, tau="-1:2:0.5", output=tmp_path / "run")
    evidence = moeits.score(toy)
    assert [point.tau for point in run.points] == [-1, -0.5, 0, 0.5, 1, 1.5, 2]
    for point in run.points:
        plan = moeits.plan(evidence, tau=point.tau)
        assert point.kept == {layer: len(kept) for layer, kept in plan.kept.items()}
        assert point.summary == plan.summary
        assert moeits.PruningPlan.load(tmp_path / "run" / point.folder / "plan.json").kept == plan.kept
    assert len({point.summary["experts_kept"] for point in run.points}) > 2, "a sweep that shows nothing"


def test_the_file_holds_what_the_function_returns(toy: Path, tmp_path: Path) -> None:
    run = moeits.sweep(toy, tau="0,1", output=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "sweep.json").read_text()) == json.loads(json.dumps(run.facts()))


def test_the_same_sweep_gives_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        moeits.sweep(toy, tau="0,1", output=tmp_path / name)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    files.remove(Path("ledger.json"))  # the run's own log, with its seconds
    assert files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_finer_grid_goes_on_from_the_evidence_of_a_coarser_one(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moeits.sweep(toy, tau="0:1:1", output=tmp_path / "run")
    monkeypatch.setattr(sys.modules["moeits.sweep"], "score", lambda *_, **__: pytest.fail("scored twice"))
    assert len(moeits.sweep(toy, tau="0:1:0.25", output=tmp_path / "run").points) == 5


def test_a_folder_of_another_checkpoint_or_other_settings_is_refused(toy: Path, tmp_path: Path) -> None:
    moeits.sweep(toy, tau="0,1", output=tmp_path / "run")
    other = make_toy(tmp_path / "other", seed=1)
    with pytest.raises(SettingError, match=r"another checkpoint \(toy\).*--fresh"):
        moeits.sweep(other, tau="0,1", output=tmp_path / "run")
    with pytest.raises(SettingError, match=r"scoring was .*\"bins\": \"auto\".*--fresh"):
        moeits.sweep(toy, tau="0,1", bins=9, output=tmp_path / "run")
    assert moeits.sweep(other, tau="0,1", output=tmp_path / "run", fresh=True).source == "other"


def test_a_checkpoint_is_no_place_for_a_sweep(toy: Path) -> None:
    with pytest.raises(OutputError, match="is a checkpoint"):
        moeits.sweep(toy, tau="1", output=toy)


@given(st.integers(-200, 200), st.integers(0, 40), st.integers(1, 50))
def test_a_range_of_taus_has_both_its_ends(first: int, steps: int, step: int) -> None:
    taus = parse_taus(f"{first / 100}:{(first + steps * step) / 100}:{step / 100}")
    assert len(taus) == steps + 1
    assert (taus[0], taus[-1]) == (first / 100, (first + steps * step) / 100)


@pytest.mark.parametrize("text", ["", "1:0:1", "0:1:0", "0:1", "a,b", "0:1:-1", "nan", "0:inf:1", "0:1:1e-9"])
def test_taus_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"write FIRST:LAST:STEP"):
        parse_taus(text)
