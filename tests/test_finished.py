"""Finished work of a run that was interrupted: used again if it is whole, nobody else's, and gone with the output."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import moeits
from moeits import finished
from moeits.errors import CalibrationError, OutputError
from moeits.experts.layout import MoELayout
from moeits.finished import FinishedParts, Workplace, forget_finished, workplace
from moeits.progress import Note
from tests.evaluation_toys import give_tokenizer
from tests.healing_toys import make_pruned, texts, write_rows
from tests.toys import make_toy

WHOLE: dict[str, Any] = {"row": {"acc": 0.5}, "samples": {}}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with workplace(tmp_path / "out") as place:
        yield place


def talking_toy(folder: Path, layers: int = 2) -> Path:
    """A toy that texts can be tokenized for."""
    make_toy(folder, layers=layers, dtype="float32")
    give_tokenizer(folder)
    return folder


class Stop(Exception):
    """Ends a run in the middle, as an error does."""


def ends_by(error: type[BaseException], output: Path, work: Callable[[Workplace], object], **more: Any) -> None:
    """A run that ends by an error when it has done some work."""

    def run() -> None:
        with workplace(output, **more) as place:
            work(place)
            raise error

    with pytest.raises(error):
        run()


def left_by_a_kill(output: Path, name: str = "layer-0", **depends_on: Any) -> None:
    """What an interrupted run leaves beside an output."""

    def keep(place: Workplace) -> None:
        place.parts(**depends_on).keep_arrays(name, {"redundancy": np.eye(2)})

    ends_by(KeyboardInterrupt, output, keep)


def of_kind(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


# ------------------------------------------------------------------------------------------------ a part


def test_arrays_and_values_come_back_as_they_were(place: Workplace) -> None:
    parts = place.parts(a=1)
    arrays = {"redundancy": np.eye(3), "facts": np.arange(5, dtype=np.uint8), "one": np.array(2.0)}
    parts.keep_arrays("layer-0", arrays)
    parts.keep_value("boolq/../x y", {"row": (1, 2), "samples": {1: "ä"}})
    again = place.parts(a=1).arrays("layer-0")
    assert again is not None
    assert all(np.array_equal(again[name], values) for name, values in arrays.items())
    assert place.parts(a=1).value("boolq/../x y") == {"row": [1, 2], "samples": {"1": "ä"}}


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"[]", b"{}", b"\xff", b'{"sha256": 1', b'{"value": {}}'])
def test_a_damaged_value_was_not_finished(tmp_path: Path, place: Workplace, content: bytes) -> None:
    place.parts(a=1).keep_value("boolq", WHOLE)
    assert place.parts(a=1).value("boolq") == WHOLE
    of_kind(tmp_path, "boolq*.json").write_bytes(content)
    assert place.parts(a=1).value("boolq") is None


def test_a_value_that_was_changed_was_not_finished(tmp_path: Path, place: Workplace) -> None:
    place.parts(a=1).keep_value("boolq", WHOLE)
    path = of_kind(tmp_path, "boolq*.json")
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert place.parts(a=1).value("boolq") is None


@pytest.mark.parametrize("damage", ["empty", "one byte", "cut", "no hash"])
def test_damaged_arrays_were_not_finished(tmp_path: Path, place: Workplace, damage: str) -> None:
    place.parts(a=1).keep_arrays("layer-0", {"w": np.ones((4, 4), np.float32)})
    path = of_kind(tmp_path, "layer-0.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "no hash":
        save_file(load_file(path), path)
    else:
        path.write_bytes({"empty": b"", "one byte": content, "cut": content[:-4]}[damage])
    assert place.parts(a=1).arrays("layer-0") is None


def test_a_part_may_depend_on_more_than_the_work(place: Workplace) -> None:
    place.parts(limit=1).keep_value("t", WHOLE, files={"a": "1"})
    assert place.parts(limit=1).value("t", files={"a": "1"}) == WHOLE
    assert place.parts(limit=1).value("t", files={"a": "2"}) is None
    assert place.parts(limit=2).value("t", files={"a": "1"}) is None


def test_what_another_release_finished_is_not_taken(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.parts(a=1).keep_value("t", WHOLE)
    monkeypatch.setattr(finished, "FORMAT", finished.FORMAT + 1)
    assert place.parts(a=1).value("t") is None


def test_without_an_output_or_beside_a_device_nothing_is_kept(tmp_path: Path) -> None:
    for output in (None, Path("/dev/null")):
        with workplace(output) as place:
            place.parts(a=1).keep_value("t", WHOLE)
            assert place.parts(a=1).value("t") is None
    FinishedParts(None).keep_arrays("t", {})
    assert not [*tmp_path.iterdir()]


# ------------------------------------------------------------------------------------------------ what is left


def test_nothing_is_left_when_the_output_is_complete(tmp_path: Path) -> None:
    with workplace(tmp_path / "new" / "out") as place:
        place.parts(a=1).keep_value("t", WHOLE)
        assert (tmp_path / "new" / "out.partial").is_dir()
        (tmp_path / "new" / "out").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_a_run_that_fails_before_anything_is_finished_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def begin(place: Workplace) -> None:
        place.parts(a=1).arrays("layer-0")
        place.scratch().mkdir()

    ends_by(error, tmp_path / "new" / "folder" / "out", begin)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_error_that_forgets_leaves_nothing_and_an_interrupt_leaves_what_is_finished(
    tmp_path: Path, error: type[BaseException]
) -> None:
    ends_by(error, tmp_path / "out", lambda place: place.parts(a=1).keep_value("t", WHOLE), forget_on=Exception)
    assert (tmp_path / "out.partial").exists() == (error is KeyboardInterrupt)


def test_leftovers_of_the_same_work_are_named_and_used(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path / "out", a=1)
    said: list[Any] = []
    with workplace(tmp_path / "out", progress=lambda what, *_: said.append(what)) as place:
        assert place.parts(a=1).arrays("layer-0") is not None
    assert [type(what) for what in said] == [Note]
    assert said[0].startswith("going on after an interrupted run, which left 1 finished parts in ")


def test_leftovers_of_other_work_stay_until_this_output_is_complete_and_then_go_by_name(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path / "out", a=1)
    left_by_a_kill(tmp_path / "out", a=2)
    said: list[str] = []
    with workplace(tmp_path / "out", progress=lambda what, *_: said.append(what)) as place:
        place.parts(a=3).keep_value("t", WHOLE)
    assert said == [f"removed what interrupted runs with other settings had finished in {tmp_path / 'out.partial'}."]
    assert not [*tmp_path.iterdir()]


def test_fresh_forgets_when_the_settings_are_known_to_be_right(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path / "out", a=1)
    ends_by(Stop, tmp_path / "out", lambda place: None, fresh=True)  # noqa: ARG005
    with workplace(tmp_path / "out", fresh=True) as place:
        assert len(place.kept()) == 1
        assert place.parts(a=1).arrays("layer-0") is None
        assert not place.kept()


def test_what_does_not_fit_into_memory_goes_with_the_run_or_with_the_next_one(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path / "out", a=1)
    (tmp_path / "out.partial" / "scratch").mkdir()
    (tmp_path / "out.partial" / "scratch" / "0.f32").write_bytes(bytes(9))

    def spill(place: Workplace) -> None:
        assert not place.scratch().exists(), "what a killed run left"
        place.scratch().mkdir()

    ends_by(KeyboardInterrupt, tmp_path / "out", spill)
    assert not (tmp_path / "out.partial" / "scratch").exists()


def test_a_folder_of_somebody_else_with_that_name_is_not_touched(tmp_path: Path) -> None:
    theirs = tmp_path / "out.partial" / "0123456789abcdef" / "layer-0.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    with workplace(tmp_path / "out", fresh=True) as place:
        place.parts(a=1).keep_value("t", WHOLE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [theirs]


def test_a_second_run_on_one_output_says_so_and_changes_nothing(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "mixtral", layers=1)
    plan = moeits.plan(moeits.score(toy, threads=1), tau=0.5)
    with workplace(tmp_path / "out") as place:
        place.parts(a=1).keep_value("t", WHOLE)
        before = sorted(tmp_path.rglob("*"))
        second = (
            lambda: moeits.score(toy, output=tmp_path / "out", threads=1),
            lambda: moeits.simplify(toy, output=tmp_path / "out", tau=0.5, threads=1),
        )
        for run in second:
            with pytest.raises(OutputError, match=rf"out is being made by another run \(process {os.getpid()}\)"):
                run()
        assert sorted(tmp_path.rglob("*")) == before
        assert place.parts(a=1).value("t") == WHOLE
    assert moeits.simplify(toy, output=tmp_path / "out", tau=0.5, threads=1).kept == plan.kept


def test_a_second_sweep_or_healing_of_one_output_says_so_and_changes_nothing(tmp_path: Path) -> None:
    pruned, data = make_pruned(tmp_path), write_rows(tmp_path / "data.jsonl", texts())
    healing: dict[str, Any] = {"data": data, "recipe": "small", "steps": 1, "sequence_length": 16, "packing": False}
    with workplace(tmp_path / "out"):
        before = sorted(tmp_path.rglob("*"))
        for run in (
            lambda: moeits.sweep(pruned, output=tmp_path / "out", tau="1", threads=1),
            lambda: moeits.heal(pruned, output=tmp_path / "out", **healing),
        ):
            with pytest.raises(OutputError, match="out is being made by another run"):
                run()
        assert sorted(tmp_path.rglob("*")) == before
    moeits.sweep(pruned, output=tmp_path / "out", tau="1", threads=1)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("mark", ["", "[]", "{", '{"process": 1}'])
def test_a_mark_that_was_cut_by_a_kill_is_in_nobodys_way(tmp_path: Path, mark: str) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "moeits.json").write_text(mark)
    with workplace(tmp_path / "out") as place:
        place.parts(a=1).keep_value("t", WHOLE)
    assert not [*tmp_path.iterdir()]


def test_a_file_with_the_name_of_the_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.partial cannot be written: File exists"), ExitStack() as stack:
        stack.enter_context(workplace(tmp_path / "out"))
    assert (tmp_path / "out.partial").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ simplify


KILLED = """
import os, signal, sys
import moeits

def kill(what, done, total):
    if what == sys.argv[4] and done >= int(sys.argv[5]):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))

options = {"criterion": "reconstruction", "refit": True, "tokens": 256} if sys.argv[6] == "refit" else {}
try:
    moeits.simplify(sys.argv[1], output=sys.argv[2], experts_per_layer=4, progress=kill, **options)
except KeyboardInterrupt:
    sys.exit(130)
"""


def killed(toy: Path, output: Path, by: signal.Signals, what: str, done: int, kind: str = "score") -> None:
    arguments = [str(toy), str(output), by.name, what, str(done), kind]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == (130 if by is signal.SIGINT else -by), ended.stderr
    assert not output.exists()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_simplify_goes_on_with_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: signal.Signals
) -> None:
    toy = make_toy(tmp_path / "toy", layers=3)
    killed(
        toy, tmp_path / "out", by, "scoring pairs of experts", 2 * 3 * 15 + 1
    )  # all pairs of two layers, one of the last
    read, layers, said = MoELayout.read, set(), []

    def counted(self: Any, checkpoint: Any, layer: int, *which: Any) -> np.ndarray:
        layers.add(layer)
        return read(self, checkpoint, layer, *which)

    with monkeypatch.context() as patch:
        patch.setattr(MoELayout, "read", counted)
        moeits.simplify(
            toy,
            output=tmp_path / "out",
            experts_per_layer=4,
            progress=lambda what, *_: said.append(what) if isinstance(what, Note) else None,
        )
    assert layers == {2}
    assert len(said) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "toy"]
    moeits.simplify(toy, output=tmp_path / "whole", experts_per_layer=4)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("what", "done"), [("calibrating layers", 2), ("refitting layers", 1)])
def test_a_killed_simplify_goes_on_with_what_it_watched_and_refitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, done: int
) -> None:
    toy = talking_toy(tmp_path / "toy")
    asked: dict[str, Any] = {"criterion": "reconstruction", "refit": True, "tokens": 256, "experts_per_layer": 4}
    killed(toy, tmp_path / "out", signal.SIGKILL, what, done, "refit")
    if what == "refitting layers":
        assert (tmp_path / "out.pruned").is_dir()
    watched: list[int] = []
    stage = sys.modules["moeits.stages.calibrate"]
    watch = stage._watch  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_watch", lambda *given: watched.append(given[2]) or watch(*given))
        if what == "refitting layers":
            patch.setattr(sys.modules["moeits.stages.simplify"], "prune", None)
        moeits.simplify(toy, output=tmp_path / "out", **asked)
    assert watched == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "toy"]
    (tmp_path / "out").rename(tmp_path / "resumed")
    moeits.simplify(toy, output=tmp_path / "out", **asked)
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "resumed" / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_an_interrupted_refit_left_of_another_plan_is_not_gone_on_with(tmp_path: Path) -> None:
    toy = talking_toy(tmp_path / "toy", layers=1)
    moeits.simplify(toy, output=tmp_path / "out.pruned", criterion="random", experts_per_layer=4)
    asked: dict[str, Any] = {"criterion": "random", "refit": True, "tokens": 256}
    with pytest.raises(OutputError, match=r"left over from an earlier run.* or go on with: moeits refit .*out\.pruned"):
        moeits.simplify(toy, output=tmp_path / "out", experts_per_layer=3, **asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pruned", "toy"]


def test_a_checkpoint_of_the_same_plan_that_somebody_else_made_is_neither_used_nor_removed(tmp_path: Path) -> None:
    toy = talking_toy(tmp_path / "toy", layers=1)
    asked: dict[str, Any] = {"criterion": "random", "experts_per_layer": 4}
    moeits.simplify(toy, output=tmp_path / "out.pruned", **asked)
    with pytest.raises(OutputError, match="left over from an earlier run"):
        moeits.simplify(toy, output=tmp_path / "out", refit=True, tokens=256, **asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pruned", "toy"]


def test_what_cannot_be_refitted_is_said_before_anything_is_scored(tmp_path: Path) -> None:
    toy = talking_toy(tmp_path / "toy", layers=1)
    config = json.loads((toy / "config.json").read_text())
    (toy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(CalibrationError, match="is quantized"):
        moeits.simplify(toy, output=tmp_path / "out", refit=True, reduction=0.5, progress=no_work)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def no_work(*what: object) -> None:
    """A progress report that expects none."""
    raise AssertionError(what)


# ------------------------------------------------------------------------------------------------ what work depends on


def later(model: Path) -> None:
    """As if the weights had been written again, the sampled bytes as they were."""
    path = model / "model.safetensors"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


def interrupted(run: Any, stage: str) -> None:
    def stop(what: str, done: int, total: int) -> None:  # noqa: ARG001
        if what == stage and done == 1:
            raise Stop

    with pytest.raises(Stop):
        run(progress=stop)


SMALL: dict[str, Any] = {"tokens": 256, "held_out": 256, "window": 32, "device": "cpu"}


def test_layers_watched_in_a_model_that_changed_since_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = talking_toy(tmp_path / "toy")
    stage, watched = sys.modules["moeits.stages.calibrate"], []
    watch = stage._watch  # type: ignore[attr-defined]
    monkeypatch.setattr(stage, "_watch", lambda *given: watched.append(given[2]) or watch(*given))

    def run(**more: Any) -> Any:
        return moeits.calibrate(toy, output=tmp_path / "e", **SMALL, **more)

    interrupted(run, "calibrating layers")
    later(toy)
    watched.clear()
    run()
    assert watched == [0, 1]
    assert not (tmp_path / "e.partial").exists()


@pytest.mark.parametrize("which", ["toy", "pruned"])
def test_layers_refitted_to_a_parent_that_changed_since_are_not_used(tmp_path: Path, which: str) -> None:
    toy = talking_toy(tmp_path / "toy")
    moeits.simplify(toy, output=tmp_path / "pruned", criterion="random", experts_per_layer=4)

    def run(**more: Any) -> Any:
        return moeits.refit(tmp_path / "pruned", parent=toy, output=tmp_path / "out", **SMALL, **more)

    interrupted(run, "refitting layers")
    left = of_kind(tmp_path / "out.partial", "layer-0.safetensors").parent
    later(tmp_path / which)
    interrupted(run, "refitting layers")
    assert {path.parent for path in (tmp_path / "out.partial").rglob("layer-0.safetensors")} > {left}
    run()
    assert not (tmp_path / "out.partial").exists()


def test_the_mark_says_what_the_folder_is(tmp_path: Path, place: Workplace) -> None:
    place.parts(a=1).keep_value("t", WHOLE)
    mark = json.loads((tmp_path / "out.partial" / "moeits.json").read_text())
    assert mark == {"kind": "finished parts", "format": finished.FORMAT, "process": os.getpid()}


def test_what_is_finished_can_be_forgotten_without_working_on_it(tmp_path: Path) -> None:
    forget_finished(tmp_path / "out")
    assert not [*tmp_path.iterdir()]
    left_by_a_kill(tmp_path / "out", a=1)
    forget_finished(tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("mark", [None, "", '{"mine": 1}'])
def test_a_folder_of_somebody_else_with_the_name_of_ours_is_left_as_it_is(tmp_path: Path, mark: str | None) -> None:
    theirs = tmp_path / "out.partial"
    (theirs / "scratch").mkdir(parents=True)
    (theirs / "scratch" / "notes.txt").write_text("mine")
    (theirs / "notes.txt").write_text("mine")
    if mark:
        (theirs / "moeits.json").write_text(mark)
    with pytest.raises(OutputError, match="was not made by moeits"), workplace(tmp_path / "out"):
        pass
    assert (theirs / "scratch" / "notes.txt").read_text() == (theirs / "notes.txt").read_text() == "mine"
    assert (theirs / "moeits.json").exists() == bool(mark)
