"""The experiments behind the docs' tables still start: one runs on a toy, the others read their flags."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONG = ("evaluate_carved", "evaluate_shared_models", "figure_2", "measure_pruned")


def test_the_noise_floor_of_a_toy_is_one_row_per_layer(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("experiments.noise_floor").main([str(toy)])
    assert capsys.readouterr().out.count("| toy |") == 3


@pytest.mark.parametrize("name", LONG)
def test_a_long_experiment_reads_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"experiments.{name}").main(["--help"])
    assert ended.value.code == 0
    assert "--" in capsys.readouterr().out


def test_every_experiment_can_be_imported_and_has_a_main() -> None:
    for path in (ROOT / "experiments").glob("[a-z]*.py"):
        module = importlib.import_module(f"experiments.{path.stem}")
        assert callable(getattr(module, "main", None)) or path.stem == "pruned_variants"
