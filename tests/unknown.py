"""Families that the table does not have: what moeits is before somebody has described them."""

import re
import tomllib
from pathlib import Path

import pytest

from moeits.experts import families


def forget(monkeypatch: pytest.MonkeyPatch, folder: Path, model_type: str) -> str:
    """Take a family, and all that are like it, out of the table until the end of the test. Gives its entry."""
    text = families.TABLE.read_text(encoding="utf-8")
    gone = [model_type]
    for name in gone:
        gone += [other for other, entry in tomllib.loads(text).items() if entry.get("like") == name]
    for name in gone:
        text = text.replace(_entry(text, name), "")
    folder.mkdir(exist_ok=True)
    entry = _entry(families.TABLE.read_text(encoding="utf-8"), model_type)
    (folder / "families.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(families, "TABLE", folder / "families.toml")
    known = families.read_families(folder / "families.toml")
    monkeypatch.setattr(families, "FAMILIES", known)
    monkeypatch.setattr(families, "ARCHITECTURES", tuple(each for each in known if not each.class_on_hub))
    return entry


def _entry(text: str, name: str) -> str:
    found = re.search(rf"(?ms)^\[{name}\]\n.*?(?=^#|^\[(?!{name}\.)|\Z)", text)
    assert found is not None
    return found[0]
