"""docs/extending.md is true: its code blocks, put where it says, work in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from moeits import signals
from moeits.choosing import criteria
from tests.toys import make_toy

ROOT = Path(__file__).parents[1]
TUPLES = {"experts/architectures": "ARCHITECTURES", "signals": "ESTIMATORS", "choosing/criteria": "CRITERIA"}
VALUES = {
    "experts/architectures": "{name}.ARCHITECTURE",
    "signals": "{name}.Cosine",
    "choosing/criteria": "{name}.CRITERION",
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with every file of the page and its one line added."""
    home = tmp_path_factory.mktemp("extended")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    blocks = re.findall(
        r"```python\n# (src/moeits/([\w/]+)/(\w+)\.py)\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S
    )
    assert {room for _, room, _, _ in blocks} == set(TUPLES)
    for path, room, name, code in blocks:
        (home / path).write_text(code)
        _add_line(home / "src" / "moeits" / room / "__init__.py", room, name)
    return home


def _add_line(init: Path, room: str, name: str) -> None:
    text = init.read_text()
    assignment = re.search(rf"^{TUPLES[room]}: .*? = \(", text, re.M)
    assert assignment, f"no tuple {TUPLES[room]}"
    value = VALUES[room].format(name=name)
    text = f"{text[: assignment.end()]}{value}, {text[assignment.end() :]}"
    where = assignment.start()
    init.write_text(f"{text[:where]}from moeits.{room.replace('/', '.')} import {name}\n{text[where:]}")


def _run(home: Path, module: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(home / "src")}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_contract_tests_are_applied_to_all_three(extended):
    contracts = [f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_contract_*.py"))]
    new = "flex_olmo or cosine or mean_redundancy"
    said = _run(extended, "pytest", "-p", "no:cacheprovider", "-v", "--durations=12", *contracts, "-k", new)
    passed = [line for line in said.splitlines() if " PASSED" in line]
    for contract, names in (
        ("architectures", ("flex_olmo",)),
        ("surgery", ("flex_olmo", "flex_olmo fused")),
        ("heal", ("flex_olmo",)),
        ("estimators", ("cosine",)),
        ("criteria", ("mean_redundancy",)),
    ):
        for name in names:
            assert any(f"test_contract_{contract}.py" in line and name in line for line in passed), (contract, name)


def test_the_tuples_take_whatever_fulfils_the_protocol():
    assert get_type_hints(signals)["ESTIMATORS"] == tuple[type[signals.RedundancyEstimator], ...]
    assert get_type_hints(criteria)["CRITERIA"] == tuple[criteria.Criterion, ...]


def test_the_new_estimator_and_criterion_plan_within_the_memory(extended, tmp_path):
    toy = make_toy(tmp_path / "toy", "olmoe")
    evidence, plan = tmp_path / "evidence", tmp_path / "plan.json"
    bounded = ("--estimator", "cosine", "--memory", 19200, "--threads", 1)
    _run(extended, "moeits", "score", toy, *bounded, "--output", evidence)
    options = ("--criterion", "mean_redundancy", "--experts-per-layer", 4)
    _run(extended, "moeits", "plan", evidence, *options, "--output", plan)
    assert '"criterion": "mean_redundancy"' in plan.read_text()
