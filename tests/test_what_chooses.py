"""Experts are chosen on tokens that are fitted or choose settings: those that judge are new to the choice as well."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.calibration.settings import Tokens
from moeits.calibration.texts import windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.console.refitting import show_calibration
from moeits.progress import silent
from moeits.stages import calibrate
from tests.evaluation_toys import CHARACTERS, give_tokenizer, write_jsonl
from tests.toys import make_toy

LETTERS = {"first": "abcd", "second": "efgh", "third": "ijkl"}
TEXTS: dict[str, Any] = {"tokens": 1024, "held_out": 512, "window": 32}
CHOICE: dict[str, Any] = {"criterion": "reap", "experts_per_layer": 4}
COMMANDS: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "calibrate": lambda toy, texts: moeits.calibrate(toy, device="cpu", **texts),
    "simplify": lambda toy, texts: moeits.simplify(toy, output=toy.parent / "out", **CHOICE, **texts),
    "forecast": lambda toy, texts: moeits.forecast(toy, reductions="0.5", criterion="reap", device="cpu", **texts),
    "compare-criteria": lambda toy, texts: moeits.compare_criteria(
        toy,
        output=toy.parent / "run",
        criteria="reap",
        refit="yes",
        device="cpu",
        limit=2,
        perplexity=texts["data"],
        **texts,
    ),
}


def three_sources(path: Path) -> Path:
    """A .jsonl of three sources without a letter in common; the two smaller ones are held out."""
    rng = np.random.default_rng(0)
    many = {"third": 100, "first": 400, "second": 110}
    rows = [
        {"text": "".join(rng.choice(list(LETTERS[name]), 100)), "source": name}
        for name in many
        for _ in range(many[name])
    ]
    return write_jsonl(path, rows)


@pytest.mark.parametrize("command", COMMANDS)
def test_experts_are_chosen_on_what_is_fitted_or_chooses_settings_and_never_on_a_source_that_judges(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path / "toy", "mixtral", dtype="float32")
    give_tokenizer(toy)
    texts = {**TEXTS, "data": str(three_sources(tmp_path / "told.jsonl"))}
    watched: list[np.ndarray] = []
    run = calibrate._all_layers

    def spied(checkpoint: Checkpoint, tokens: np.ndarray, *others: Any) -> Any:
        watched.append(tokens)
        return run(checkpoint, tokens, *others)

    monkeypatch.setattr(calibrate, "_all_layers", spied)
    COMMANDS[command](toy, texts)
    (tokens,) = watched
    watched_letters = LETTERS["first"] + LETTERS["third"]
    assert set(np.unique(tokens)) == {0, *(2 + CHARACTERS.index(letter) for letter in watched_letters)}
    np.testing.assert_array_equal(tokens, windows_of(Checkpoint.open(toy), Tokens(**texts), silent).watched)


def test_evidence_and_command_say_which_sources_were_watched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = make_toy(tmp_path / "toy", "mixtral", dtype="float32")
    give_tokenizer(toy)
    output = tmp_path / "signals.safetensors"
    moeits.calibrate(toy, output=output, device="cpu", data=str(three_sources(tmp_path / "told.jsonl")), **TEXTS)
    evidence = moeits.Evidence.load(output)
    assert [evidence.settings[role] for role in ("fitted", "chosen_by", "judged_by")] == [
        ["first"],
        ["third"],
        ["second"],
    ]
    show_calibration(evidence, {"output": output})
    said = capsys.readouterr().out
    assert "tokens of first, third, in windows" in said
    assert "not of second" in said
