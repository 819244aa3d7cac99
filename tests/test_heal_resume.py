"""A killed healing goes on where it was, and ends where it would have ended."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import moeits
from moeits.errors import HealingError, MoeitsError
from tests.healing_toys import make_pruned, texts, write_rows
from tests.toys import read_tensors

pytest.importorskip("torch")

STEPS, EVERY = 12, 3
# After two saved states, and not at one: what came since the last is trained again.
KILLED_AT = 8
SETTINGS = {
    "recipe": "small",
    "rank": 4,
    "dropout": 0.1,
    "neftune": 5.0,
    "batch_size": 4,
    "accumulation": 2,
    "steps": STEPS,
    "sequence_length": 16,
    "packing": False,
    "learning_rate": 1e-2,
    "evaluate_every": EVERY,
}
IN_A_PROCESS = """
import os, signal, sys
import moeits
model, data, output, last, settings = sys.argv[1:]
def progress(what, done, total):
    if what == "healing" and done == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
moeits.heal(model, data=data, output=output, progress=progress, **eval(settings))
"""


def heal_in_a_process(pruned: Path, data: Path, output: Path, *, killed_at: int = 0, **changes) -> int:
    """Heal in a process of its own, with one thread, and kill it at a step; its exit code."""
    arguments = [str(pruned), str(data), str(output), str(killed_at), repr({**SETTINGS, **changes})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, "-c", IN_A_PROCESS, *arguments], env=environment, check=False).returncode


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pruned toy, and data."""
    folder = tmp_path_factory.mktemp("resume")
    return make_pruned(folder, layers=2), write_rows(folder / "data.jsonl", texts())


@pytest.mark.slow
def test_a_run_killed_between_saved_states_and_resumed_gives_the_same_bytes(material, tmp_path: Path):
    """Equal to the bit: the same machine, one thread, the same order of data, the same random state, and no sum whose
    order changes from run to run (experts add up their tokens along an axis, not by scattering).
    """
    pruned, data = material
    output = tmp_path / "resumed"
    assert heal_in_a_process(pruned, data, output, killed_at=KILLED_AT) == -signal.SIGKILL
    assert not output.exists()
    assert (tmp_path / "resumed.healing" / f"checkpoint-{(KILLED_AT - 1) // EVERY * EVERY}").is_dir()
    assert heal_in_a_process(pruned, data, output, resume=True) == 0
    assert heal_in_a_process(pruned, data, tmp_path / "whole") == 0
    resumed, whole, before = read_tensors(output), read_tensors(tmp_path / "whole"), read_tensors(pruned)
    assert [n for n in whole if resumed[n].tobytes() != whole[n].tobytes()] == []
    assert any(before[n].tobytes() != whole[n].tobytes() for n in whole)
    assert not (tmp_path / "resumed.healing").exists()


class Stopped(Exception):
    """Stands for a kill that a test can survive."""


def stop_at(step: int):
    def progress(what: str, done: int, total: int) -> None:  # noqa: ARG001
        if what == "healing" and done == step:
            raise Stopped

    return progress


@pytest.fixture
def interrupted(material, tmp_path: Path) -> Path:
    """The output of a healing that was stopped after its first saved state."""
    pruned, data = material
    with pytest.raises(Stopped):
        moeits.heal(pruned, data=data, output=tmp_path / "out", progress=stop_at(EVERY + 1), **SETTINGS)
    return tmp_path / "out"


def test_an_interrupted_healing_is_neither_lost_nor_mixed_up(material, interrupted: Path):
    pruned, data = material

    def again(**changes) -> None:
        moeits.heal(pruned, data=data, output=interrupted, **{**SETTINGS, **changes})

    with pytest.raises(HealingError, match=r"interrupted healing. Go on with --resume, or forget it with --fresh"):
        again()
    with pytest.raises(HealingError, match=r"another recipe.*learning_rate was 0.01"):
        again(resume=True, learning_rate=1e-3)
    with pytest.raises(HealingError, match=r"of 12 steps. Resume it with --steps 12, or .* saved \(3\)"):
        again(resume=True, steps=7)
    again(resume=True, steps=EVERY)
    assert (interrupted / "config.json").exists()


def test_a_healing_of_another_checkpoint_is_not_resumed(material, interrupted: Path, tmp_path: Path):
    _, data = material
    other = make_pruned(tmp_path / "other", layers=2, seed=1)
    with pytest.raises(HealingError, match="another checkpoint"):
        moeits.heal(other, data=data, output=interrupted, resume=True, **SETTINGS)


def test_a_run_is_resumed_with_its_own_held_out_data_only(material, interrupted: Path, tmp_path: Path):
    """The loss before healing is kept from the run's start: that of another text would say nothing beside it."""
    pruned, data = material
    for_looking = write_rows(tmp_path / "valid.jsonl", texts(4))
    with pytest.raises(HealingError, match="the healing of other"):
        moeits.heal(pruned, data=data, output=interrupted, resume=True, valid=for_looking, **SETTINGS)
    healing = {"data": data, "output": tmp_path / "other", **SETTINGS}
    with pytest.raises(Stopped):
        moeits.heal(pruned, valid=for_looking, progress=stop_at(EVERY + 1), **healing)
    write_rows(for_looking, texts(5))
    with pytest.raises(HealingError, match="other held-out data"):
        moeits.heal(pruned, valid=for_looking, resume=True, **healing)


def test_a_teacher_is_known_by_its_weights_and_not_by_its_place(material, tmp_path: Path):
    pruned, data = material
    teacher = pruned.parent / "toy"
    healing = {"data": data, "output": tmp_path / "out", "objective": "distillation", **SETTINGS}
    with pytest.raises(Stopped):
        moeits.heal(pruned, teacher=teacher, progress=stop_at(EVERY + 1), **healing)
    with pytest.raises(HealingError, match="another teacher"):
        moeits.heal(pruned, teacher=pruned, resume=True, **healing)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(teacher, elsewhere)
    moeits.heal(pruned, teacher=elsewhere, resume=True, **{**healing, "steps": EVERY})


def test_a_run_on_more_data_than_its_first_steps_need_can_be_ended_early(material, tmp_path: Path):
    pruned, _ = material
    healing = {"data": write_rows(tmp_path / "much.jsonl", texts(200)), "output": tmp_path / "out", **SETTINGS}
    with pytest.raises(Stopped):
        moeits.heal(pruned, progress=stop_at(EVERY + 1), **healing)
    assert moeits.heal(pruned, resume=True, **{**healing, "steps": EVERY}).best_step == EVERY


def test_there_must_be_something_to_resume(material, tmp_path: Path):
    pruned, data = material
    with pytest.raises(HealingError, match="There is nothing to resume"):
        moeits.heal(pruned, data=data, output=tmp_path / "out", resume=True, **SETTINGS)


@pytest.mark.parametrize("left", ["nothing", "the file under way", "run.json"])
def test_a_run_killed_before_its_first_saved_state_begins_anew_and_says_so(material, tmp_path: Path, left: str):
    pruned, data = material
    healing = {"data": data, "output": tmp_path / "out", **SETTINGS, "steps": 2}
    if left == "run.json":
        with pytest.raises(Stopped):
            moeits.heal(pruned, progress=stop_at(1), **healing)
    else:
        (tmp_path / "out.healing").mkdir()
    if left == "the file under way":
        (tmp_path / "out.healing" / ".run.json.1234").write_text('{"fing')
    healed = moeits.heal(pruned, resume=True, **healing)
    assert any("began anew" in note for note in healed.notes)
    assert (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out.healing").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "adapter.safetensors", "trainer_state.json"])
def test_a_damaged_state_is_a_sentence_that_names_it(material, interrupted: Path, name: str):
    pruned, data = material
    state = interrupted.with_name("out.healing") / f"checkpoint-{EVERY}"
    (state / name).write_bytes(b"[]" if name == "trainer_state.json" else b"damaged")
    with pytest.raises(HealingError, match=rf"checkpoint-{EVERY} cannot be resumed: a file of it is damaged"):
        moeits.heal(pruned, data=data, output=interrupted, resume=True, **SETTINGS)


def test_a_fault_of_the_first_step_after_a_resume_is_not_called_a_damaged_state(
    material, interrupted: Path, monkeypatch: pytest.MonkeyPatch
):
    from moeits.healing import training

    class Fault(Exception):
        """Anything but a damaged file."""

    def breaks(*_):
        raise Fault

    monkeypatch.setattr(training, "objective_of", lambda *_: breaks)
    pruned, data = material
    with pytest.raises(Fault):
        moeits.heal(pruned, data=data, output=interrupted, resume=True, **SETTINGS)


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_good_state(
    material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from moeits.healing import objective, training

    batches = iter(range(100))

    def breaks(batch, logits):  # two micro-batches a step: not finite in step 5
        return objective.next_token_loss(batch, logits) * (float("nan") if next(batches) >= 8 else 1)

    monkeypatch.setattr(training, "objective_of", lambda *_: breaks)
    pruned, data = material
    with pytest.raises(MoeitsError, match=r"NaN or infinite at step 5. .*step 3, is kept: --resume --steps 3"):
        moeits.heal(pruned, data=data, output=tmp_path / "out", **SETTINGS)
    monkeypatch.undo()
    healing = moeits.heal(pruned, data=data, output=tmp_path / "out", resume=True, **{**SETTINGS, "steps": EVERY})
    assert healing.best_step == EVERY


def test_a_disk_that_fills_up_while_training_is_a_sentence_and_the_last_state_is_kept(
    material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from moeits.healing import training

    pruned, data = material
    save = training.HealingTrainer._save

    def full_at_the_second(trainer, output_dir=None, state_dict=None):
        if trainer.state.global_step > EVERY:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, output_dir, state_dict)

    monkeypatch.setattr(training.HealingTrainer, "_save", full_at_the_second)
    with pytest.raises(MoeitsError, match=r"became full while training; step 3 is kept: make room and go on"):
        moeits.heal(pruned, data=data, output=tmp_path / "out", **SETTINGS)
    monkeypatch.undo()
    moeits.heal(pruned, data=data, output=tmp_path / "out", resume=True, **SETTINGS)
    assert (tmp_path / "out" / "config.json").exists()
