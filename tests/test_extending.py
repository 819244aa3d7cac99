"""docs/extending.md is true: its code blocks, put where it says, work in a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from safetensors import safe_open

from moeits import signals
from moeits.choosing import criteria
from moeits.choosing.pruning_plan import PruningPlan
from moeits.evidence import Evidence
from tests.toys import make_toy, read_config, read_tensors, write_checkpoint

ROOT = Path(__file__).parents[1]
# A file of the page, and after it the line that makes it known: "`name.VALUE` in `TUPLE`".
ADDITION = re.compile(
    r"```python\n# src/moeits/([\w/]+)/(\w+)\.py\n(.*?)```\n.*?`(\w+\.\w+),?` in `([A-Z_]+)`", re.DOTALL
)
# An entry of the table of families.
ENTRY = re.compile(r"```toml\n# src/moeits/(experts/families\.toml)\n(.*?)```", re.DOTALL)
TUPLES = {"CODECS", "EDITS", "PAIR_SIGNALS", "EXPERT_SIGNALS", "CRITERIA", "ALLOCATIONS"}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with every file of the page and its one line added."""
    home = tmp_path_factory.mktemp("extended")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    page = (ROOT / "docs/extending.md").read_text()
    ((table, entry),) = ENTRY.findall(page)
    families = home / "src" / "moeits" / table
    without = families.read_text().replace(entry, "")
    assert "[flex_olmo]" not in without, "the page shows the entry as it is"
    families.write_text(f"{without}\n{entry}")
    additions = ADDITION.findall(page)
    assert {known_by for *_, known_by in additions} == TUPLES
    for room, name, code, value, known_by in additions:
        (home / "src" / "moeits" / room / f"{name}.py").write_text(code)
        _add_line(home / "src" / "moeits" / room / "__init__.py", room, name, value, known_by)
    return home


def _add_line(init: Path, room: str, name: str, value: str, known_by: str) -> None:
    text = init.read_text()
    assignment = re.search(rf"^{known_by}: .*? = \(", text, re.M)
    assert assignment, f"no tuple {known_by}"
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
def test_the_contract_tests_are_applied_to_all_of_them(extended):
    contracts = [f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_contract_*.py"))]
    new = "flex_olmo or (cosine and not router) or largest-entry or mean_redundancy or int8-rows or same-norm"
    said = _run(extended, "pytest", "-p", "no:cacheprovider", "-v", "--durations=12", *contracts, "-k", new)
    passed = [line for line in said.splitlines() if " PASSED" in line]
    for contract, names in (
        ("architectures", ("flex_olmo",)),
        ("surgery", ("flex_olmo", "flex_olmo fused")),
        ("heal", ("flex_olmo",)),
        ("signals", ("[cosine", "[largest-entry")),
        ("criteria", ("mean_redundancy",)),
        ("codecs", ("[int8-rows",)),
        ("edits", ("[same-norm",)),
    ):
        for name in names:
            assert any(f"test_contract_{contract}.py" in line and name in line for line in passed), (contract, name)


def test_the_tuples_take_whatever_fulfils_the_protocol():
    assert get_type_hints(signals)["PAIR_SIGNALS"] == tuple[type[signals.PairSignal], ...]
    assert get_type_hints(signals)["EXPERT_SIGNALS"] == tuple[type[signals.ExpertSignal], ...]
    assert get_type_hints(criteria)["CRITERIA"] == tuple[criteria.Criterion, ...]


def test_the_new_signals_and_the_criterion_plan_within_the_memory(extended, tmp_path):
    toy = make_toy(tmp_path / "toy", "olmoe")
    evidence, plan = tmp_path / "evidence", tmp_path / "plan.json"
    cosine = ("--estimator", "cosine", "--power", 3)
    bounded = ("--memory", 19200, "--threads", 1)  # three encoded experts at a time
    _run(extended, "moeits", "score", toy, *cosine, *bounded, "--output", tmp_path / "bounded")
    _run(extended, "moeits", "score", toy, *cosine, "--signals", "largest-entry", "--output", evidence)
    redundancy = Evidence.load(tmp_path / "bounded").redundancy
    assert redundancy.keys() == Evidence.load(evidence).redundancy.keys()
    assert all(np.array_equal(Evidence.load(evidence).redundancy[layer], r) for layer, r in redundancy.items())
    with safe_open(evidence, framework="numpy") as file:
        assert '"settings": {"power": 3, ' in file.metadata()["moeits"]
        assert file.get_tensor("layers.0.largest-entry").shape == (6,)
    options = ("--criterion", "mean_redundancy", "--experts-per-layer", 4)
    _run(extended, "moeits", "plan", evidence, *options, "--output", plan)
    assert '"criterion": "mean_redundancy"' in plan.read_text()


def test_the_new_codec_scores_what_its_numbers_stand_for(extended, tmp_path):
    toy = make_toy(tmp_path / "toy", "olmoe", dtype="float32")
    packed, plain = dict(read_tensors(toy)), dict(read_tensors(toy))
    for name in [name for name in packed if ".experts." in name]:
        scale = np.abs(packed[name]).max(axis=1, keepdims=True) / 127
        packed[name] = np.round(packed[name] / scale).astype(np.int8)
        packed[f"{name}_scale"], plain[name] = scale, packed[name] * scale
    found = {}
    for form, tensors in (("packed", packed), ("plain", plain)):
        folder = write_checkpoint(tmp_path / form, read_config(toy), tensors)
        _run(extended, "moeits", "score", folder, "--output", tmp_path / f"{form}.evidence")
        found[form] = Evidence.load(tmp_path / f"{form}.evidence").redundancy
    assert all(np.array_equal(redundancy, found["plain"][layer]) for layer, redundancy in found["packed"].items())


def test_the_new_edit_makes_the_experts_of_a_plan(extended, tmp_path):
    toy = make_toy(tmp_path / "toy", "olmoe", dtype="float32")
    asked = ("--experts-per-layer", 3, "--edit", "same-norm", "--output", tmp_path / "out")
    _run(extended, "moeits", "simplify", toy, *asked)
    text, before, after = (
        (tmp_path / "out" / "plan.json").read_text(),
        read_tensors(toy),
        read_tensors(tmp_path / "out"),
    )
    assert '"name": "same-norm"' in text
    stored = json.loads(text)
    made = 0
    for layer, kept in stored["kept"].items():
        for number, expert in enumerate(kept):
            ours, own = (f"model.layers.{layer}.mlp.experts.{e}.up_proj.weight" for e in (number, expert))
            norms = [np.linalg.norm(tensors[name]) for tensors, name in ((after, ours), (before, own))]
            assert np.isclose(*norms, rtol=1e-5)
            made += not np.array_equal(after[ours], before[own])
    assert made == sum(map(len, stored["edit"]["groups"].values())) > 0


def test_the_new_allocation_shares_out_a_budget(extended, tmp_path):
    toy = make_toy(tmp_path / "toy")
    asked = (
        "--criterion",
        "random",
        "--allocation",
        "inner",
        "--reduction",
        0.1,
        "--output",
        tmp_path / "out",
        "--json",
    )
    _run(extended, "moeits", "simplify", toy, *asked)
    plan = PruningPlan.load(tmp_path / "out" / "plan.json")
    before, first, last = plan.experts_before(), min(plan.counts), max(plan.counts)
    assert plan.settings["allocation"] == "inner"
    assert [layer for layer, count in plan.counts.items() if count < before[layer]]
    assert all(plan.counts[layer] == before[layer] for layer in (first, last))
