"""Finished work of a run that was interrupted: used again if it is whole, and nobody else's."""

from pathlib import Path

import numpy as np
import pytest

from moeits.evaluation.finished_tasks import FinishedTasks
from moeits.finished import FinishedLayers

WHOLE = {"row": {"acc": 0.5}, "samples": {}}


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"[]", b"{}", b"\xff", b'{"row": 1'])
def test_a_damaged_task_was_not_finished(tmp_path: Path, content: bytes) -> None:
    kept = FinishedTasks(tmp_path / "r.json", made_with={"a": 1}, fresh=False)
    kept.put("boolq", WHOLE)
    assert kept.get("boolq") == WHOLE
    next((tmp_path / "r.json.partial").rglob("*.json")).write_bytes(content)
    assert kept.get("boolq") is None


def test_what_is_finished_of_another_evaluation_is_not_forgotten(tmp_path: Path) -> None:
    one, other = (FinishedTasks(tmp_path / "r.json", made_with={"a": a}, fresh=False) for a in (1, 2))
    one.put("boolq", WHOLE)
    other.put("boolq", WHOLE)
    one.remove()
    assert one.get("boolq") is None
    assert other.get("boolq") == WHOLE
    other.remove()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("matrix", [np.full((2, 2), np.nan), np.array([[0.0, 1.0], [2.0, 0.0]]), np.zeros(3)])
def test_a_damaged_layer_was_not_finished(tmp_path: Path, matrix: np.ndarray) -> None:
    kept = FinishedLayers(tmp_path / "e", fingerprint="x", settings={}, fresh=False)
    kept.put(0, {"redundancy": np.eye(2)})
    assert kept.get(0) is not None
    kept.put(0, {"redundancy": matrix})
    assert kept.get(0) is None
    next((tmp_path / "e.partial").rglob("layer-0*")).write_bytes(b"")
    assert kept.get(0) is None
