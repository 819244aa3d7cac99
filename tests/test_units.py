"""Units of scoring: every pair once, within the limits, the same from whoever computes it."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeits.checkpoint.reading import Checkpoint
from moeits.engines.threads import Threads
from moeits.experts.layout import MoELayout
from moeits.scoring import units
from moeits.scoring.units import Held, Limits, Unit, score_unit, units_of
from moeits.signals.nmi import NMI
from moeits.stages.score import score
from tests.toys import make_toy

GATE = ("gate",)


@given(st.integers(1, 70), st.integers(2, 80), st.integers(1, 9))
def test_units_cover_every_pair_once_and_hold_no_more_experts_than_fit(count: int, fit: int, workers: int) -> None:
    layout: Any = SimpleNamespace(layers={0: SimpleNamespace(num_experts=count)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "_experts_that_fit", lambda *_: fit)
        made = list(units_of(None, layout, NMI(), 0, GATE, Limits(workers=workers, memory_bytes=0)))  # type: ignore[arg-type]
    pairs = Counter((i, j) for unit in made for i, js in unit.strips() for j in js)
    assert pairs == Counter((i, j) for i in range(count) for j in range(i + 1, count))
    assert max(len(unit.experts) for unit in made) <= fit
    assert all(len(js) <= 16 for unit in made for _, js in unit.strips())


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Path, Checkpoint, MoELayout]:
    folder = make_toy(tmp_path / "toy", "olmoe", experts=8, top_k=2, layers=2)
    checkpoint = Checkpoint.open(folder)
    return folder, checkpoint, MoELayout.of(checkpoint)


def test_a_unit_scores_the_same_alone_in_any_order_and_by_any_engine(toy: Any) -> None:
    folder, checkpoint, layout = toy
    signal = NMI().for_model(GATE, "olmoe")
    made = [
        Unit(layer=1, parts=GATE, rows=range(0, 3), columns=range(0, 3)),
        Unit(layer=1, parts=GATE, rows=range(0, 3), columns=range(3, 8)),
        Unit(layer=0, parts=GATE, rows=range(0, 3), columns=range(3, 8)),
        Unit(layer=1, parts=("up",), rows=range(2, 5), columns=range(5, 7)),
    ]
    held = Held()
    with Threads(1) as one, Threads(3) as three:
        alone = [score_unit(checkpoint, layout, signal, unit, engine=one) for unit in made]
        again = [score_unit(checkpoint, layout, signal, unit, engine=three, held=held) for unit in reversed(made)]
    for a, b in zip(alone, reversed(again), strict=True):
        assert np.array_equal(a.values, b.values)
        assert np.array_equal(a.floor, b.floor)
    whole = score(folder, projection_weights={"gate": 1, "up": 0, "down": 0})
    assert np.array_equal(alone[1].values, whole.redundancy[1][:3, 3:])
    assert np.array_equal(np.triu(alone[0].values, 1), np.triu(whole.redundancy[1][:3, :3], 1))
    assert not np.tril(alone[0].values).any()
    assert np.array_equal(alone[1].floor, whole.floor[1])
