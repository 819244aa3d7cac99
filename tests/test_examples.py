"""The scripts of examples/ run as they are, the notebook from top to bottom; the citation names the version there."""

import ast
import json
import re
import runpy
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import moeits
from moeits.command_line.app import application
from moeits.demo import TRAIN, VALID
from moeits.evaluation.results import Results
from tests.evaluation_toys import give_tokenizer
from tests.toys import make_toy

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
COMMANDS: dict[str, Any] = typer.main.get_command(application()).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_toy(tmp_path_factory.mktemp("examples") / "toy", "qwen2_moe", experts=6, dtype="float32")
    give_tokenizer(folder)
    return folder


def run(name: str, *arguments: object) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](*map(str, arguments))


def test_the_largest_model_that_fits_a_size_goes_on_with_a_sentence(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = moeits.Checkpoint.open(toy).nbytes * 3 // 4
    run("fit_a_size.py", toy, f"{size}B", tmp_path / "smaller")
    assert "of 18 experts stay" in capsys.readouterr().out
    assert moeits.Checkpoint.open(tmp_path / "smaller").nbytes <= size


def test_three_sizes_stand_beside_chance(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(VALID.read_text().splitlines(keepends=True)[:2]))
    run("beside_chance.py", toy, text, tmp_path / "folder")
    said = capsys.readouterr().out
    assert said.count("removed, moeits:") == said.count("removed, random:") == 3


def test_experts_are_chosen_and_refitted_by_own_text(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("your_own_text.py", toy, VALID, tmp_path / "smaller")
    said = capsys.readouterr().out
    assert said.count("experts saw no token of this text") == 3
    assert "refit accepted: " in said


def test_the_demo_shows_every_row_beside_its_control_and_a_page_with_the_losses(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moeits.demo import __main__ as demo

    small = {"MODEL": toy, "TAUS": (1.25,), "CONTROLS": 1, "TOKENS": 512, "HEALING": {"recipe": "small", "steps": 1}}
    for name, value in small.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "VALID", write_lines(tmp_path / "valid.jsonl", VALID, 7))
    monkeypatch.setattr(demo, "TRAIN", write_lines(tmp_path / "train.jsonl", TRAIN, 60))
    demo.demonstrate(tmp_path / "demo")
    lines = capsys.readouterr().out.splitlines()
    rows = {}
    for name in (
        "unpruned",
        "MoEITS, tau 1.25",
        "MoEITS, tau 1.25, healed",
        "MoEITS, tau 1.25, refitted",
        "reconstruction",
        "reconstruction, refitted",
    ):
        (row,) = (line for line in lines if re.match(rf" *{name}  ", line))
        rows[name] = re.findall(r"[+-]\d\.\d{3}", row)
    assert [len(numbers) for numbers in rows.values()] == [0, 2, 2, 2, 2, 2], "lost, and lost by a random choice"
    for line in lines:
        if line.startswith("$ moeits "):
            COMMANDS[line.split()[2]].make_context("demo", shlex.split(line)[3:])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "reconstruction" in page
    assert f"{Results.load(tmp_path / 'demo/pruned/unpruned/unhealed.json').perplexity['nats_per_token']:.3f}" in page


def write_lines(path: Path, source: Path, count: int) -> Path:
    """The first lines of a file."""
    path.write_text("".join(source.read_text().splitlines(keepends=True)[:count]))
    return path


def test_every_example_is_named_and_run_here() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    own, page = Path(__file__).read_text(), (EXAMPLES / "README.md").read_text()
    assert len(scripts) == 3
    assert not {name for name in scripts if f'run("{name}"' not in own or f"({name})" not in page}


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == moeits.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2604.10603"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = {cell["id"]: cell for cell in notebook["cells"] if cell["cell_type"] == "code"}
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells.values()), "kept without outputs"
    names: dict[str, Any] = {}
    shown = {name: last_value("".join(cell["source"]), names) for name, cell in cells.items()}
    assert shown["inspect"] == "160 experts in 5 layers"
    assert "<table" in shown["score"]._repr_html_()
    assert "<table" in shown["plan"]._repr_html_()
    assert "model.safetensors" in shown["prune"]
    losses = shown["evaluate"]
    assert losses["unpruned"] < min(losses["half"], losses["by chance"])
    difference = shown["compare"]
    assert difference is not None
    assert shown["load"].startswith("Qwen2MoeForCausalLM, ")


def last_value(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; what a notebook would show of it."""
    *before, last = ast.parse(source).body
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return None
