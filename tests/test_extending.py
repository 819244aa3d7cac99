"""docs/extending.md is true: its code blocks, put where it says, work in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import make_toy

ROOT = Path(__file__).parents[1]
TUPLES = {"architectures": "ARCHITECTURES", "estimators": "ESTIMATORS", "criteria": "CRITERIA"}
VALUES = {"architectures": "{name}.ARCHITECTURE", "estimators": "{name}.Cosine", "criteria": "{name}.CRITERION"}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with every file of the page and its one line added."""
    home = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "src" / "moeits", home / "moeits", ignore=shutil.ignore_patterns("demo", "__pycache__"))
    blocks = re.findall(
        r"```python\n# src/(moeits/(\w+)/(\w+)\.py)\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S
    )
    assert {room for _, room, _, _ in blocks} == set(TUPLES)
    for path, room, name, code in blocks:
        (home / path).write_text(code)
        _add_line(home / "moeits" / room / "__init__.py", room, name)
    return home


def _add_line(init: Path, room: str, name: str) -> None:
    text = init.read_text()
    assignment = re.search(rf"^{TUPLES[room]}: .*? = \(", text, re.M)
    assert assignment, f"no tuple {TUPLES[room]}"
    value = VALUES[room].format(name=name)
    text = f"{text[: assignment.end()]}{value}, {text[assignment.end() :]}"
    where = assignment.start()
    init.write_text(f"{text[:where]}from moeits.{room} import {name}\n{text[where:]}")


def _moeits(home: Path, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(home)}
    command = [sys.executable, "-m", "moeits", *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_new_architecture_is_simplified(extended, tmp_path):
    toy = make_toy(tmp_path / "toy", "olmoe")
    config = toy / "config.json"
    config.write_text(config.read_text().replace('"olmoe"', '"flex_olmo"').replace("Olmoe", "FlexOlmo"))
    _moeits(extended, "simplify", toy, "--tau", "0.5", "--output", tmp_path / "small")
    assert "flex_olmo" in _moeits(extended, "inspect", tmp_path / "small")


def test_the_new_estimator_and_criterion_plan(extended, tmp_path):
    toy = make_toy(tmp_path / "toy", "olmoe")
    _moeits(extended, "score", toy, "--estimator", "cosine", "--output", tmp_path / "evidence")
    plan = tmp_path / "plan.json"
    options = ("--criterion", "mean_redundancy", "--experts-per-layer", 4)
    _moeits(extended, "plan", tmp_path / "evidence", *options, "--output", plan)
    assert '"criterion": "mean_redundancy"' in plan.read_text()
