"""The core imports and runs where POSIX is not. Nothing here was run on Windows: what it lacks is hidden instead."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_as_on_windows(commands: list[list[str]], folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "commands.json"
    script.write_text(json.dumps(commands))
    command = [sys.executable, "-X", "warn_default_encoding", "-m", "tests.as_on_windows", str(script)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_model_is_inspected_scored_planned_and_pruned_without_what_only_posix_has(toy: Path, tmp_path: Path) -> None:
    evidence, plan, out = (str(tmp_path / name) for name in ("evidence.safetensors", "plan.json", "out"))
    prune = ["prune", str(toy), "--plan", plan, "--output", out]
    done = run_as_on_windows(
        [
            ["inspect", str(toy)],
            ["score", str(toy), "--output", evidence],
            ["plan", evidence, "--tau", "0.5", "--output", plan],
            prune,
            [*prune, "--overwrite"],  # which syncs
            ["simplify", str(toy), "--tau", "0.5", "--output", str(tmp_path / "simplified")],
            ["inspect", out],
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "simplified" / "model.safetensors"
    ).read_bytes()


def test_what_posix_alone_has_is_hidden_from_moeits_and_from_nobody_else() -> None:
    code = (
        "from tests.as_on_windows import hide; hide(); import resource, os; os.sched_getaffinity\n"
        "for line in ('import resource', 'import os; os.sched_getaffinity', 'from signal import SIGHUP',\n"
        "             'import os; os.open(\".\", os.O_RDONLY)', 'open(\"README.md\")'):\n"
        "    try: exec(compile(line, 'x', 'exec'), {'__name__': 'moeits.x', '__builtins__': __builtins__})\n"
        "    except (ImportError, AttributeError, OSError, EncodingWarning) as error: print(type(error).__name__)\n"
    )
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [
        "ModuleNotFoundError",
        "AttributeError",
        "ImportError",
        "PermissionError",
        "EncodingWarning",
    ], done.stderr
