"""Names of strangers, on a terminal and in Markdown: shown as they are, and obeyed by nobody."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeits import console
from moeits.printable import markdown_text, printable
from tests.toys import make_toy

HARMFUL = {
    "escape sequence": "\x1b[31mred",
    "title of the window": "\x1b]0;owned\x07",
    "one byte instead of two": "\x9b31m",
    "line over line": "all is well\rmoeits",
    "new line": "x\nmoeits: all is well",
    "line of Unicode": "x\u2028y",
    "the other way": "\u202egnp.exe",
    "half of a pair": "\ud800",
    "nothing": "\x00",
}


@pytest.mark.parametrize("text", HARMFUL.values(), ids=HARMFUL.keys())
def test_what_a_terminal_would_obey_is_shown_and_not_sent(capsys: pytest.CaptureFixture[str], text: str) -> None:
    console.out(f"model {text}")
    console.error(f"model {text}")
    console.table([f"column {text}"], [[f"cell {text}"]])
    captured = capsys.readouterr()
    for shown, lines in ((captured.out, 3), (captured.err, 1)):
        assert len(shown.splitlines()) == lines
        assert not set(shown) & set(text) & {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e"} - {"\n"}
        assert "\\x" in shown or "\\u" in shown
        shown.encode()


@given(st.text(st.characters()))
def test_any_text_is_one_line_that_can_be_encoded(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert all(character.isprintable() or character.isspace() or ord(character) > 160 for character in shown)


@given(st.text(max_size=500))
def test_no_text_is_longer_than_was_asked_and_its_ends_are_kept(text: str) -> None:
    cut = printable(text.replace("\t", " "), 60)
    assert len(printable(text)) <= 60 or "…" in cut or cut == printable(text)
    plain = "a" * 400 + "end"
    assert len(printable(plain, 60)) == 60
    assert printable(plain, 60).startswith("aaa")
    assert printable(plain, 60).endswith("end")


def test_markup_of_the_table_library_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["[red]task"], [["[link=http://x]y[/link][/]"]])
    console.out("[bold]x[/bold][/]")
    shown = capsys.readouterr().out
    for text in ("[red]task", "[link=http://x]y[/link][/]", "[bold]x[/bold][/]"):
        assert text in shown


def test_a_sentence_of_a_hundred_thousand_characters_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.error("tensor " + "x" * 100_000 + " is not known. Do this.")
    shown = capsys.readouterr().err
    assert len(shown) < 1500
    assert shown.endswith("is not known. Do this.\n")


def test_markdown_of_a_name_holds_no_markup() -> None:
    assert markdown_text("x\n# Headline") == "x\\\\x0a# Headline"
    assert markdown_text("<script>") == "&lt;script>"
    assert markdown_text("a|b`c`") == "a\\|b\\`c\\`"
    assert markdown_text("a\\|b") == "a\\\\\\|b", "a backslash does not open the cell again"
    assert markdown_text("[x](http://y)") == "\\[x\\](http://y)"
    assert markdown_text("arc_easy_local, -3.2 [-5.0, -1.4]") == "arc_easy_local, -3.2 [-5.0, -1.4]"


# ------------------------------------------------------------------------------------------------ real processes


def moeits(*arguments: object, **how: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "moeits", *map(str, arguments)], capture_output=True, check=False, **how
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("names") / "modèle", model_type="qwen2_moe")


def test_a_name_that_ascii_cannot_write_is_escaped(model: Path) -> None:
    done = moeits("inspect", model, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"mod\\xe8le" in done.stdout


def test_a_folder_whose_name_is_not_utf_8_is_inspected_swept_and_reported(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xffname")
    make_toy(Path(folder), model_type="qwen2_moe")
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    for arguments in (
        ("inspect", folder),
        ("sweep", folder, "--tau", "1", "--output", f"{folder}.run"),
        ("report", f"{folder}.run", "--format", "md", "--output", tmp_path / "r.md"),
    ):
        done = moeits(*arguments, env=strict)
        assert done.returncode == 0, done.stderr
    assert "bad\\\\udcffname" in (Path(f"{folder}.run") / "sweep.json").read_text()


def test_a_closed_output_does_not_stop_the_work(model: Path) -> None:
    for flags in ((), ("--json",)):
        command = f'exec "$0" -m moeits inspect "$1" {" ".join(flags)} >&-'
        done = subprocess.run(["sh", "-c", command, sys.executable, str(model)], stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_who_has_gone_is_no_error(model: Path) -> None:
    for flags in ((), ("--json",)):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "moeits", "inspect", str(model), *flags],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_while_modules_are_imported_is_one_line(model: Path) -> None:
    code = (
        "import sys, os, signal\n"
        # Whoever runs these tests may be in the background of a script, and ignore interrupts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == WHERE: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from moeits.__main__ import main\n"
        f"sys.argv = ['moeits', 'inspect', {str(model)!r}]\n"
        "main()\n"
    )
    for where in ("moeits.command_line", "typer", "moeits.checkpoint.reading", "rich.table"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("WHERE", repr(where))], capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (130, b"moeits: Interrupted.\n"), where


def test_numbers_are_whole_on_a_terminal_of_20_columns(model: Path) -> None:
    main_side, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "20", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-m", "moeits", "inspect", str(model)], stdout=terminal, env=environment, check=False
    )
    os.close(terminal)
    shown = os.read(main_side, 1 << 16).decode()
    assert done.returncode == 0
    assert "…" not in shown
    assert "routed experts" in shown
