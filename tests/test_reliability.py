"""docs/reliability.md names the test of every fault; the tests are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", PAGE)
    assert len(named) > 50
    for module, name in named:
        functions = {
            node.name: node
            for node in ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{module} has no {name}"
