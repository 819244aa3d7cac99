"""`pip install moeits`, without extras, scores and prunes; torch is not there at all.

Nothing is downloaded: a bare environment is given links to what this one has of the core's dependencies, and of theirs.
"""

import json
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.toys import make_toy, read_config

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def closure(requirements: list[str]) -> set[str]:
    """Distributions that pip would install for these requirements, without extras that nobody asks for."""
    waiting, wanted = [(Requirement(text), "") for text in requirements], set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for asked in ("", *requirement.extras):
            if (requirement.name, asked) not in wanted:
                wanted.add((requirement.name, asked))
                its = distribution(requirement.name).requires or []
                waiting += [(Requirement(text), asked) for text in its]
    return {name for name, _ in wanted}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a bare virtual environment that has this package and what it depends on."""
    folder = tmp_path_factory.mktemp("core") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    where = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    links = {"moeits": REPOSITORY / "src" / "moeits"}
    for name in closure(PROJECT["dependencies"]):
        installed = distribution(name)
        tops = {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}
        links |= {top: Path(str(installed.locate_file(top))) for top in tops}
    for top, target in links.items():
        (Path(where) / top).symlink_to(target)
    module, function = PROJECT["scripts"]["moeits"].split(":")
    command = folder / "bin" / "moeits"
    command.write_text(f"#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    command.chmod(0o755)
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
    assert "pip install '.[load]'" in done.stderr
