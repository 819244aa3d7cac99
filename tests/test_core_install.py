"""`pip install moeits`, without extras, scores and prunes; torch is not there at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import make_toy, read_config

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh virtual environment that has this package and what it depends on."""
    folder = tmp_path_factory.mktemp("core") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    reachable = subprocess.run(
        [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "hatchling"],
        capture_output=True,
        text=True,
        check=False,
    )
    if reachable.returncode:
        pytest.skip("this test installs the package from the index, and pip cannot reach one here")
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--constraint", REPOSITORY / "constraints.txt", REPOSITORY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    return python


def run(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    # -I: neither this checkout nor anything of the surrounding environment is importable.
    command = [str(python), "-I", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_core_scores_plans_and_prunes_without_torch(python: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "toy")
    for absent in ("torch", "transformers", "scipy"):
        assert run(python, "-c", f"import {absent}", cwd=tmp_path).returncode != 0, f"{absent} came in"
    for command in (
        ["score", "toy", "--output", "e.safetensors"],
        ["plan", "e.safetensors", "--tau", "0.5", "--output", "plan.json"],
        ["prune", "toy", "--plan", "plan.json", "--output", "one"],
        ["simplify", "toy", "--tau", "0.5", "--output", "two"],
        ["inspect", "two", "--json"],
    ):
        done = run(python, "-m", "moeits", *command, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert json.loads(done.stdout)["kind"] == "checkpoint"
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    assert read_config(tmp_path / "two")["model_type"] == "qwen2_moe"


@pytest.mark.slow
def test_the_command_is_installed_and_lists_what_extras_add_too(python: Path, tmp_path: Path) -> None:
    moeits = python.with_name("moeits")
    version = subprocess.run([moeits, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("moeits ")
    listed = run(python, "-m", "moeits", "--help", cwd=tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    for name in ("inspect", "score", "plan", "prune", "simplify", "evaluate", "measure", "sweep", "report"):
        assert name in listed.stdout


@pytest.mark.slow
def test_what_needs_an_extra_says_which(python: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "toy")
    done = run(python, "-c", "import moeits; moeits.load('toy')", cwd=tmp_path)
    assert "pip install 'moeits[load]'" in done.stderr
