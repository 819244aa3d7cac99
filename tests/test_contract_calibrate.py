"""Every family is calibrated and refitted, or told why not; which are is in the page of families."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError, CheckpointError
from moeits.experts.families import ARCHITECTURES
from moeits.experts.layout import MoELayout
from tests.calibrated import NOT_BY_RECONSTRUCTION, NOT_CALIBRATED, NOT_REFITTED
from tests.healing_toys import spelt, write_letters, write_rows
from tests.toys import MODEL_TYPES, make_toy, of_each_kind, read_config, read_tensors

REFUSED = (CalibrationError, CheckpointError)


def calibrated_and_refitted(model: Path, folder: Path) -> Path | None:
    """The refitted checkpoint, whose layers are nearer to their parent's than before; None where that is refused."""
    write_letters(model)
    family, words = read_config(model)["model_type"], np.random.default_rng(0).integers(62, size=(300, 12))
    data = write_rows(folder / "data.jsonl", [{"text": spelt(row)} for row in words])
    some: dict[str, Any] = {"data": str(data), "tokens": 256, "held_out": 256, "window": 16}
    if family in NOT_CALIBRATED:
        with pytest.raises(REFUSED, match=NOT_CALIBRATED[family]):
            moeits.calibrate(model, **some)
        signals = moeits.score(model)
    elif family in NOT_BY_RECONSTRUCTION:
        with pytest.raises(REFUSED, match=NOT_BY_RECONSTRUCTION[family]):
            moeits.calibrate(model, **some)
        signals = moeits.calibrate(model, selection=0, **some)
    else:
        # Sets that know no groups are not searched for where there are some.
        grouped = any(moe.groups > 1 for moe in MoELayout.of(Checkpoint.open(model)).layers.values())
        searched = {} if grouped else {"moe-i2-genetic": {"search_sets": 4}}
        signals = moeits.calibrate(model, specialists=True, **some, **searched.get("moe-i2-genetic", {}))
        assert all({*signals.known(name)} == {*signals.layers} for name in ("reconstruction", "mop", *searched))
    criterion = "moeits" if family in NOT_CALIBRATED else "reap"
    plan = moeits.plan(signals, criterion=criterion, experts_per_layer=4)
    moeits.prune(model, plan=plan, output=folder / "pruned")
    if family in NOT_REFITTED:
        with pytest.raises(REFUSED, match=NOT_REFITTED[family]):
            moeits.refit(folder / "pruned", parent=model, output=folder / "refitted", **some)
        assert not (folder / "refitted").exists()
        return None
    made = moeits.refit(folder / "pruned", parent=model, output=folder / "refitted", **some)
    assert sum(each["error_after"] < each["error_before"] for each in made.layers) == len(plan.kept)
    return folder / "refitted"


@pytest.mark.parametrize("family", of_each_kind(MODEL_TYPES))
def test_it_is_calibrated_and_refitted_or_told_why_not(family: str, tmp_path: Path) -> None:
    refitted = calibrated_and_refitted(make_toy(tmp_path / "toy", family, dtype="float32"), tmp_path)
    if refitted is None:
        return
    before, after = read_tensors(tmp_path / "pruned"), read_tensors(refitted)
    made = json.loads((refitted / "refit.json").read_text())
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert before.keys() == after.keys()
    assert changed == set(made["tensors"].get("computed", ()))
    assert bool(changed) == made["accepted"]
    layers = MoELayout.of(Checkpoint.open(refitted)).layers.values()
    assert all(name.startswith(tuple(prefix for moe in layers for prefix in moe.within)) for name in changed)


def test_who_is_not_calibrated_is_a_family() -> None:
    known = {architecture.model_type for architecture in ARCHITECTURES}
    assert {*NOT_REFITTED, *NOT_BY_RECONSTRUCTION} <= known
    assert not {*NOT_CALIBRATED} & {*NOT_BY_RECONSTRUCTION}
