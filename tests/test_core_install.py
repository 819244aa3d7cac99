"""`pip install moeits`, without extras, scores and prunes; torch is not there at all.

Nothing is downloaded: a bare environment is given links to what this one has of the core's dependencies, and of theirs.
"""

import json
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
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


def bare_environment(folder: Path) -> tuple[Path, Path]:
    """The interpreter of a virtual environment that has what the core depends on, and where packages are in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    where = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    links: dict[str, Path] = {}
    for name in closure(PROJECT["dependencies"]):
        installed = distribution(name)
        tops = {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}
        links |= {top: Path(str(installed.locate_file(top))) for top in tops}
    for top, target in links.items():
        (where / top).symlink_to(target)
    return folder / "bin" / "python", where


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a bare virtual environment that has this package and what it depends on."""
    python, where = bare_environment(tmp_path_factory.mktemp("core") / "venv")
    (where / "moeits").symlink_to(REPOSITORY / "src" / "moeits")
    module, function = PROJECT["scripts"]["moeits"].split(":")
    command = python.with_name("moeits")
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


@pytest.mark.slow
def test_wheel_and_sdist_are_built_and_the_wheel_runs_where_nothing_of_this_checkout_is(tmp_path: Path) -> None:
    built = tmp_path / "dist"
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(built)]
    subprocess.run(build, cwd=REPOSITORY, capture_output=True, check=True)
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    package = REPOSITORY / "src" / "moeits"
    carried = ("py.typed", "experts/families.toml", "modeling_moeits.py", "report_page/page.css", "demo/valid.jsonl")
    assert {f"moeits/{name}" for name in carried} <= set(names)
    assert {name for name in names if name.endswith(".py")} == {
        path.relative_to(package.parent).as_posix() for path in package.rglob("*.py")
    }
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"src/moeits/py.typed", "docs/README.md", "tests/toys.py", "scripts/README.md", "LICENSE"} <= inside
    python, _ = bare_environment(tmp_path / "venv")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, capture_output=True, check=True)
    helped = subprocess.run(
        [python.with_name("moeits"), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "simplify" in helped.stdout
    make_toy(tmp_path / "toy")
    done = run(python, "-m", "moeits", "simplify", "toy", "--experts-per-layer", "4", "--output", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    where = run(python, "-c", "import moeits; print(moeits.__file__)", cwd=tmp_path).stdout
    assert where.startswith(str(tmp_path))
