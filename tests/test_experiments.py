"""The experiments behind the docs' tables still start: one runs on a toy, the others read their flags."""

import importlib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# What others are made of has no main of its own.
PROGRAMS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("benchmarks", "experiments")
    for path in (ROOT / folder).glob("*.py")
    if "\ndef main(argv: Sequence[str] | None = None) -> None:\n" in path.read_text(encoding="utf-8")
)


def test_the_noise_floor_of_a_toy_is_one_row_per_layer(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("experiments.noise_floor").main([str(toy)])
    assert capsys.readouterr().out.count("| toy |") == 3


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_reads_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(["--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_every_program_has_the_one_form_of_main() -> None:
    started = {
        f"{path.parent.name}.{path.stem}"
        for folder in ("benchmarks", "experiments")
        for path in (ROOT / folder).glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert started == set(PROGRAMS)
    assert {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")} - {"pruned_variants"} <= {
        name.removeprefix("experiments.") for name in PROGRAMS
    }


def test_weights_are_rounded_to_the_nearest_of_as_many_numbers_as_bits_allow() -> None:
    rounded = importlib.import_module("experiments.equal_bytes").rounded
    weight = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    for bits in (2, 3, 4, 8):
        made = rounded(weight, bits).reshape(6, 2, 16)
        assert max(len(np.unique(group)) for row in made for group in row) <= 2**bits - 1
        most = np.abs(weight.reshape(6, 2, 16)).max(axis=2, keepdims=True)
        # Half a step, and the largest number by which a scale in bf16 is off.
        assert (np.abs(made - weight.reshape(6, 2, 16)) <= most / (2 ** (bits - 1) - 1) / 2 + most / 128).all()


def test_an_article_is_ordinary_text_again() -> None:
    heads = importlib.import_module("experiments.wikitext_heads")
    text = (
        ' = One = \n \n He said , " I do n\'t @-@ know ( yet ) . " \n = = Part = = \n More . \n = Two = \n Other . \n'
    )
    assert [*heads.articles(text)] == ['He said, "I do n\'t-know (yet)."\nMore.', "Other."]
