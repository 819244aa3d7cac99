"""Refitted, healed, healed again: the files and the card of a checkpoint say all that was done to it, in order."""

import json
from pathlib import Path

import pytest

import moeits
from moeits.errors import CheckpointError
from moeits.surgery.history import History
from tests.healing_toys import make_pruned, texts, write_rows

pytest.importorskip("torch")

FIT = {"tokens": 2048, "held_out": 1024, "window": 32, "device": "cpu"}
TINY = {"recipe": "small", "rank": 2, "batch_size": 4, "steps": 2, "sequence_length": 16, "targets": "router"}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy -> pruned -> refitted -> healed -> twice healed -> refitted again."""
    folder = tmp_path_factory.mktemp("line")
    pruned = make_pruned(folder, layers=2)
    data = write_rows(folder / "data.jsonl", texts())
    moeits.refit(pruned, parent=folder / "toy", output=folder / "refitted", **FIT)
    moeits.heal(folder / "refitted", data=data, output=folder / "healed", **TINY)
    moeits.heal(folder / "healed", data=data, output=folder / "twice", seed=1, **TINY)
    moeits.refit(folder / "twice", parent=folder / "toy", output=folder / "again", **FIT)
    return folder


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("refitted", ["refit.json"]),
        ("healed", ["refit.json", "healing.json"]),
        ("twice", ["refit.json", "healing-1.json", "healing.json"]),
        ("again", ["refit-1.json", "healing-1.json", "healing.json", "refit.json"]),
    ],
)
def test_every_treatment_has_its_file_and_its_section(line: Path, name: str, files: list[str]) -> None:
    folder = line / name
    assert list(History.of(folder).names) == files
    there = {path.name for pattern in ("refit*.json", "healing*.json") for path in folder.glob(pattern)}
    assert there == set(files)
    card = (folder / "README.md").read_text()
    said = [line for line in card.splitlines() if line in ("## Refit", "## Healing")]
    assert said == ["## Refit" if file.startswith("refit") else "## Healing" for file in files]
    places = [card.index(f"`{file}` has the") for file in files]
    assert places == sorted(places)
    assert ("nothing was trained" in card) == (name == "refitted")
    assert "pruned checkpoint's, byte for byte" not in card


def test_an_earlier_file_is_kept_byte_for_byte_under_the_name_that_the_card_gives(line: Path) -> None:
    before, after = (line / name for name in ("healed", "twice"))
    assert (after / "healing-1.json").read_bytes() == (before / "healing.json").read_bytes()
    assert (after / "refit.json").read_bytes() == (before / "refit.json").read_bytes()
    assert json.loads((after / "healing.json").read_text())["seed"] == 1


def test_a_refitted_checkpoint_is_replaced_like_any_other_of_ours(line: Path) -> None:
    with pytest.raises(moeits.MoeitsError, match="--overwrite"):
        moeits.refit(line / "pruned", parent=line / "toy", output=line / "again", **FIT)
    moeits.refit(line / "pruned", parent=line / "toy", output=line / "again", overwrite=True, **FIT)
    assert History.of(line / "again").names == ("refit.json",)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"earlier": ["../../secret.json"]}',
        '{"earlier": ["plan.json"]}',
        '{"earlier": ["refit-1.json"]}',
        '{"earlier": ["healing-1.json", "healing-1.json"]}',
        '{"earlier": ["healing-1.json\\n"]}',
        "{}",
    ],
)
def test_a_record_that_cannot_be_read_stops_a_healing_before_it_trains(line: Path, tmp_path: Path, text: str) -> None:
    pruned = make_pruned(tmp_path, layers=2)
    (pruned / "refit.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"refit(-1)?\.json"):
        moeits.heal(pruned, data=line / "data.jsonl", output=tmp_path / "healed", **TINY)
    assert not list(tmp_path.glob("healed*"))
