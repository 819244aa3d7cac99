"""--quiet, --verbose and --log: how a command speaks, and what it leaves in a file."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moeits.command_line import app as cli
from moeits.console.voice import USUAL, Course, voice
from moeits.progress import Note

Ran = tuple[int, str, str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command; its exit code, and what it wrote to its two outputs."""

    def command(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["moeits", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return command


def test_quiet_prints_nothing_but_errors_and_json(run: Callable[..., Ran], toy: Path, tmp_path: Path) -> None:
    asked = ("simplify", toy, "--experts-per-layer", 4, "-o", tmp_path / "out")
    assert run(*asked, "--quiet") == (0, "", "")
    assert (tmp_path / "out" / "plan.json").is_file()
    code, out, err = run(*asked, "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "exists" in err
    code, out, err = run("inspect", toy, "-q", "--json")
    assert (code, json.loads(out)["kind"], err) == (0, "checkpoint", "")
    assert run("inspect", toy)[1] != ""


def test_verbose_says_each_piece_of_work_and_leaves_the_result_alone(
    run: Callable[..., Ran], toy: Path, tmp_path: Path
) -> None:
    code, usual, err = run("score", toy, "-o", tmp_path / "a.safetensors")
    assert (code, err) == (0, "")
    code, out, err = run("score", toy, "-o", tmp_path / "b.safetensors", "--verbose")
    assert (code, out) == (0, usual.replace("a.safetensors", "b.safetensors"))
    assert re.search(r"^work: scoring pairs of experts, \d+ to do$", err, re.MULTILINE)
    assert re.search(r"^done: scoring pairs of experts, \d+ in \d+\.\d s$", err, re.MULTILINE)


def test_quiet_and_verbose_exclude_each_other(run: Callable[..., Ran], toy: Path) -> None:
    assert run("inspect", toy, "-q", "-v") == (2, "", "moeits: --quiet and --verbose cannot be both: leave one out.\n")


def test_a_log_has_what_was_done_and_how_it_ended_run_after_run(
    run: Callable[..., Ran], toy: Path, tmp_path: Path
) -> None:
    log, output = tmp_path / "log.txt", tmp_path / "out"
    for expected in (0, 2):
        assert run("simplify", toy, "--experts-per-layer", 4, "-o", output, "--log", log, "-q")[0] == expected
    kinds = [re.fullmatch(r"\S+\+00:00 (\w+): (.+)", line).groups() for line in log.read_text().splitlines()]  # type: ignore[union-attr]
    ends = [index for index, (kind, _) in enumerate(kinds) if kind == "ends"]
    first, second = kinds[: ends[0] + 1], kinds[ends[0] + 1 :]
    assert first[0][1].endswith(f"simplify {toy} --experts-per-layer 4 -o {output} --log {log} -q")
    assert {"begins", "work", "done", "says", "ends"} == {kind for kind, _ in first}
    assert ("says", f"written: {output}") in first
    assert [kind for kind, _ in second] == ["begins", "error", "ends"]
    assert f"{output} exists" in second[1][1]


def test_a_log_that_cannot_be_written_is_a_sentence_before_any_work(
    run: Callable[..., Ran], toy: Path, tmp_path: Path
) -> None:
    code, _, err = run("score", toy, "-o", tmp_path / "scores.safetensors", "--log", tmp_path / "none" / "log.txt")
    assert (code, "Choose another --log" in err) == (2, True)
    assert not (tmp_path / "scores.safetensors").exists()


def test_nothing_is_added_to_a_file_that_is_no_log(run: Callable[..., Ran], toy: Path) -> None:
    for file in (toy / "config.json", next(toy.glob("*.safetensors"))):
        before = file.read_bytes()
        code, _, err = run("inspect", toy, "--log", file)
        assert (code, "is a file, and not a log of moeits. Choose another --log." in err) == (2, True)
        assert file.read_bytes() == before


def test_a_log_is_not_the_output_and_may_be_no_file_at_all(run: Callable[..., Ran], toy: Path, tmp_path: Path) -> None:
    both = tmp_path / "scores.safetensors"
    code, _, err = run("score", toy, "-o", both, "--log", both)
    assert (code, err) == (2, f"moeits: --log {both} is also --output. Choose another --log.\n")
    assert not both.exists()
    code, _, err = run("inspect", toy, "--log", "/dev/null")
    assert (code, err) == (0, "")
    assert run("inspect", toy, "--log", "/dev/full")[0] == 2
    assert voice() is USUAL


def test_a_course_tells_each_piece_once_and_again_if_it_begins_again() -> None:
    told: list[tuple[str, str]] = []
    course = Course(lambda kind, text: told.append((kind, re.sub(r"[\d.]+ s", "? s", text))))
    for what, done, total in [("a", 0, 2), ("a", 2, 2), ("a", 2, 2), (Note("look"), 0, 0), ("b", 1, 1), ("a", 0, 3)]:
        course(what, done, total)
    assert told == [
        ("work", "a, 2 to do"),
        ("done", "a, 2 in ? s"),
        ("note", "look"),
        ("work", "b, 1 to do"),
        ("done", "b, 1 in ? s"),
        ("work", "a, 3 to do"),
    ]
