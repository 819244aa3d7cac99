"""The site of the docs: every page is in it, its links lead somewhere, every command and function is described."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moeits
from moeits.command_line.app import COMMANDS

pytest.importorskip("mkdocs", reason="the site is built by mkdocs-material, which is in the extra dev")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    subprocess.run([sys.executable, "scripts/site_pages.py", str(folder)], cwd=ROOT, check=True)
    return folder


def test_the_site_is_built_without_a_warning(pages: Path) -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("build/", f"{pages.parent}/")
    (pages.parent / "mkdocs.yml").write_text(config, encoding="utf-8")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(pages.parent / "mkdocs.yml")],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    start = (pages.parent / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="docs/too-large.html"' in start
    assert "fonts.googleapis" not in start


def test_the_reference_has_every_command_and_every_name_of_the_package(pages: Path) -> None:
    commands = (pages / "reference" / "commands.md").read_text(encoding="utf-8")
    assert [line.removeprefix("## moeits ") for line in commands.splitlines() if line.startswith("## ")] == [*COMMANDS]
    assert "| `--tau` | The paper's dial: remove pairs above mean + tau * iqr. |" in commands
    python = (pages / "reference" / "python.md").read_text(encoding="utf-8")
    named = {line.removeprefix("## moeits.") for line in python.splitlines() if line.startswith("## ")}
    assert named == {name for name in moeits.__all__ if name != "__version__"}
    assert "    estimator='nmi',\n" in python
