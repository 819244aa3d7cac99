"""Small artefacts: complete or not there, and never in the place of what moeits did not make."""

import hashlib
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import moeits
from moeits.errors import HealingError, MoeitsError, OutputError
from moeits.files import write_whole
from moeits.healing.run import HealingRun
from tests.evaluation_toys import make_speaking_toy, results
from tests.test_bad_input import Shell, contents
from tests.toys import make_toy, mark_as_made_by_moeits


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@contextmanager
def full_disk(room: int = 0) -> Iterator[None]:
    """No file may grow beyond `room` bytes: the system refuses in the middle of a write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_a_hub_cache(model: Path, cache: Path) -> Path:
    """The snapshot of a model as huggingface_hub keeps it: links to blobs that are named by their content."""
    snapshot = cache / "models--org--name" / "snapshots" / ("a" * 40)
    blobs = cache / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in model.iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


# ------------------------------------------------------------------------------------------------ whole or not at all


def _write_and_read(path: Path, content: bytes, others: tuple[bytes, ...], until: float, torn: object) -> None:
    while time.time() < until:
        try:
            write_whole(path, content)
            wrong = path.read_bytes() not in others
        except MoeitsError:
            wrong = True
        if wrong:
            torn.set()  # type: ignore[attr-defined]


def test_two_writers_of_one_file_leave_the_file_of_one_of_them(tmp_path: Path) -> None:
    contents = (b"a" * 3_000_000, b"b" * 1_000_000)
    context = multiprocessing.get_context("fork")
    torn, until = context.Event(), time.time() + 1.5
    writers = [
        context.Process(target=_write_and_read, args=(tmp_path / "x.json", content, contents, until, torn))
        for content in contents
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not torn.is_set(), "a mixture was read, or a writer was refused"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.json", b"before")
    with full_disk(100), pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path / "x.json", b"after" * 100)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.json": b"before"}


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / ("x" * 255), b"content")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"content"


def test_a_new_file_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "x.json", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o640


# ------------------------------------------------------------------------------------------------ never over inputs


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "LICENSE", "new.json"])
def test_no_verb_writes_into_the_model_that_it_reads(shell: Shell, tmp_path: Path, name: str) -> None:
    toy = make_speaking_toy(tmp_path / "toy")
    (toy / "LICENSE").write_text("mine")
    (tmp_path / "link").symlink_to(toy / name)
    (tmp_path / "t.txt").write_text("a b c " * 20)
    for output in (toy / name, *(["link"] if (toy / name).exists() else [])):
        saying = "source toy, which is never touched"
        shell.refuses("score", "toy", "--output", output, saying=saying)
        shell.refuses("measure", "toy", "--no-run", "--output", output, saying=saying)
        shell.refuses("evaluate", "toy", "--perplexity", "t.txt", "--output", output, saying=saying)


@pytest.mark.parametrize("output", ["tokenizer.json", "LICENSE", "plan.json", "config.json", "mine.json"])
def test_a_file_of_a_checkpoint_that_is_not_an_input_stays_too(shell: Shell, tmp_path: Path, output: str) -> None:
    make_toy(tmp_path / "toy")
    other = make_toy(tmp_path / "other")
    for name in ("tokenizer.json", "LICENSE", "plan.json", "mine.json"):
        (other / name).write_text(json.dumps({"mine": True}))
    (tmp_path / "link").symlink_to(other / output)
    moeits.score("toy", output="e.safetensors")
    results({"t": [1.0, 0.0]}).save("a.json")
    for path in (other / output, "link"):
        saying = "is a file of a checkpoint, which is not written over"
        shell.refuses("plan", "e.safetensors", "--tau", "1", "--output", path, saying=saying)
        shell.refuses("compare", "a.json", "a.json", "--output", path, saying=saying)
        shell.refuses("measure", "toy", "--no-run", "--output", path, saying=saying)


def test_what_moeits_wrote_beside_a_checkpoint_it_may_write_again(shell: Shell, tmp_path: Path) -> None:
    make_toy(tmp_path / "toy")
    other = make_toy(tmp_path / "other")
    for _ in range(2):
        assert shell.run("measure", "toy", "--no-run", "--output", other / "footprint.json")[0] == 0
        assert shell.run("score", "toy", "--output", other / "e.safetensors")[0] == 0
        assert shell.run("plan", other / "e.safetensors", "--tau", "1", "--output", other / "recipe.json")[0] == 0


def test_nothing_in_the_cache_of_the_hub_is_written_over(shell: Shell, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    (toy / "README.md").write_text("# mine")
    snapshot = in_a_hub_cache(toy, tmp_path / "hub")
    moeits.score("toy", output="e.safetensors")
    for name in ("config.json", "model.safetensors", "README.md"):
        for place in (snapshot / name, (snapshot / name).resolve()):
            shell.refuses("plan", "e.safetensors", "--tau", "1", "--output", place, saying="is not written over")
            shell.refuses("measure", snapshot, "--no-run", "--output", place, saying="is never touched")


def over(name: str) -> Callable[[Path], Path]:
    return lambda folder: folder / name


def by_a_link(name: str) -> Callable[[Path], Path]:
    def link(folder: Path) -> Path:
        (folder / "link").symlink_to(folder / name)
        return folder / "link"

    return link


@pytest.mark.parametrize("place", [over, by_a_link])
def test_no_verb_writes_over_what_it_reads(
    shell: Shell, tmp_path: Path, place: Callable[[str], Callable[[Path], Path]]
) -> None:
    for name in ("a.json", "b.json"):
        results({"t": [1.0, 0.0]}).save(tmp_path / name)
    make_speaking_toy(tmp_path / "toy")
    (tmp_path / "t.txt").write_text("a b c " * 20)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text("{}")
    moeits.sweep("toy", tau="1", output="run")

    def refuses(name: str, *command: object) -> None:
        output = place(name)(tmp_path)
        shell.refuses(*command, "--output", output, saying="the output is made")
        (tmp_path / "link").unlink(missing_ok=True)

    refuses("a.json", "compare", "a.json", "b.json")
    refuses("b.json", "compare", "a.json", "b.json")
    refuses("t.txt", "evaluate", "toy", "--perplexity", "t.txt")
    refuses("data/mine.jsonl", "evaluate", "toy", "--tasks", "arc_easy", "--data-dir", "data")
    for name in ("evidence.safetensors", "sweep.json", "ledger.json"):
        refuses(f"run/{name}", "report", "run")
    refuses(next((tmp_path / "run").glob("experts-*/plan.json")).relative_to(tmp_path).as_posix(), "report", "run")


def test_a_report_may_lie_in_the_run_it_shows(tmp_path: Path) -> None:
    moeits.sweep(make_toy(tmp_path / "toy"), tau="1", output=tmp_path / "run")
    for _ in range(2):
        moeits.report(tmp_path / "run", output=tmp_path / "run" / "report.md", format="md")


# ------------------------------------------------------------------------------------------------ never removed


@pytest.mark.parametrize("flags", [[], ["--fresh"]])
@pytest.mark.parametrize("name", ["unpruned", "experts-12", "unpruned/deep"])
def test_a_sweep_does_not_write_into_the_model_that_is_swept(
    shell: Shell, tmp_path: Path, name: str, flags: list[str]
) -> None:
    (tmp_path / "run").mkdir()
    make_toy(tmp_path / "run" / name)
    model = Path("run") / name
    shell.refuses("sweep", model, "--tau", "1", "--output", "run", *flags, saying="which is never touched")


def test_a_source_with_nearly_the_name_of_a_point_survives_a_fresh_sweep(shell: Shell, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "run" / "experts-of-mine")
    before = contents(toy)
    assert shell.run("sweep", toy, "--tau", "1", "--output", "run", "--fresh")[0] == 0
    assert contents(toy) == before


def test_a_fresh_sweep_removes_what_a_sweep_made_and_nothing_else(toy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moeits.sweep(toy, tau="0,1", output=run)
    made = next(run.glob("experts-*"))
    (made / "random-0").mkdir()
    (made / "plan.json").rename(made / "random-0" / "plan.json")
    mark_as_made_by_moeits(make_toy(made / "pruned"))
    mine = [run / "experts-notes" / "thesis.txt", run / "unpruned" / "photo.jpg", run / "experts-1" / "plan.json"]
    mine += [run / "experts-2" / "pruned" / "config.json", run / "experts-2" / "healed.healing" / "diary.txt"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    make_toy(run / "experts-3" / "pruned")
    moeits.sweep(toy, tau="100", output=run, fresh=True)
    assert not any((made / name).exists() for name in ("random-0", "pruned"))
    assert all(path.read_text() == "mine" for path in mine)
    assert (run / "experts-3" / "pruned" / "model.safetensors").exists()


def test_a_fresh_sweep_does_not_remove_a_file_that_only_has_the_name_of_its_own(shell: Shell, tmp_path: Path) -> None:
    make_toy(tmp_path / "toy")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.json").write_text('{"kept": "by me"}')
    shell.refuses("sweep", "toy", "--tau", "1", "--output", "run", "--fresh", saying="run/ledger.json is not a file")


def test_simplify_never_tells_one_to_remove_the_source(shell: Shell, tmp_path: Path) -> None:
    make_toy(tmp_path / "mine.pruned", dtype="float32")
    (tmp_path / "data.jsonl").write_text("{}")
    asked = ["simplify", "mine.pruned", "--tau", "1", "--heal", "data.jsonl", "--recipe", "small", "--output", "mine"]
    said = shell.refuses(*asked, saying="The source is never touched")
    assert "Remove" not in said


def test_a_folder_with_the_name_of_a_healing_is_not_forgotten(tmp_path: Path) -> None:
    run = HealingRun(tmp_path / "out.healing")
    run.begin({"fingerprint": "x"}, steps=3, fresh=False)
    (run.folder / "checkpoint-2").mkdir()
    run.check({}, steps=3, resume=False, fresh=True)
    (run.folder / "diary.txt").write_text("mine")
    with pytest.raises(HealingError, match="is not the folder of a healing, so --fresh does not remove it"):
        run.check({}, steps=3, resume=False, fresh=True)
    run.remove()
    assert (run.folder / "diary.txt").exists()
    (run.folder / "diary.txt").unlink()
    run.remove()
    assert not run.folder.exists()
