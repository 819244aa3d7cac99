"""Optional dependencies: what is missing is named, and a version that nobody has tried is told the range."""

import re
import sys
import tomllib
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeits import extras
from moeits.errors import MissingExtra

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    extras._warn_of.cache_clear()
    yield
    extras._warn_of.cache_clear()


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingExtra, match=r"needs no_such_package, .*pip install '\.\[heal\]'"):
        extras.need("no_such_package", extra="heal")


@pytest.mark.parametrize("version", ["5.19.4", "4.57.6", "6.0.0", "6.0.0.dev0"])
def test_a_version_that_nobody_tried_is_told_the_range_once(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = types.ModuleType("transformers")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    with pytest.warns(UserWarning, match=rf"transformers >=5\.20,<6; this is {re.escape(version)}"):
        assert extras.need("transformers", extra="load") is module
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extras.need("transformers", extra="load")


@pytest.mark.parametrize("version", ["5.20.0", "5.23.0", "5.99", ""])
def test_a_version_within_the_range_is_not(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = types.ModuleType("transformers")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extras.need("transformers", extra="load")


def test_the_ranges_begin_where_the_project_asks_and_hold_the_versions_of_ci() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    least = dict(each.split(">=") for requirements in asked.values() for each in requirements if ">=" in each)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if re.match(r"[\w.-]+==", line))
    for package, (first, untried) in extras.TRIED.items():
        assert least[package] == first
        assert extras._numbers(first) <= extras._numbers(pins[package]) < extras._numbers(untried)
