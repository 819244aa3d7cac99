"""Configs and tokenizers that transformers and torch choke on: every verb that opens a model says so in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moeits
from moeits.errors import HealingError, MoeitsError
from moeits.healing.conversations import read_rows
from tests.evaluation_toys import make_speaking_toy
from tests.healing_toys import texts, write_rows
from tests.toys import VOCAB

RECIPE: dict[str, Any] = {"recipe": "small", "steps": 1, "rank": 1, "targets": "router", "batch_size": 1}


def heal(model: Path, folder: Path) -> None:
    data = write_rows(folder / "rows.jsonl", texts(12))
    moeits.heal(model, data=data, output=folder / "healed", sequence_length=16, **RECIPE)


def evaluate(model: Path, folder: Path) -> None:
    (folder / "text.txt").write_text("to be or not " * 20)
    moeits.evaluate(model, perplexity=folder / "text.txt", output=folder / "results.json")


def calibrate(model: Path, folder: Path) -> None:
    moeits.calibrate(model, tokens=256, held_out=256, window=16, selection=64, output=folder / "signals.safetensors")


VERBS: tuple[Callable[[Path, Path], None], ...] = (heal, evaluate, calibrate)


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_speaking_toy(tmp_path / "toy", experts=4, layers=2)


@pytest.mark.parametrize("verb", VERBS)
def test_an_unchanged_model_is_opened(verb: Callable[[Path, Path], None], toy: Path, tmp_path: Path) -> None:
    verb(toy, tmp_path)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 5000},
        {"hidden_size": "abc"},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 2000},
        {"max_position_embeddings": "x"},
        {"max_position_embeddings": 0},
        {"hidden_act": "nope"},
        {"layer_types": ["x"]},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_one_sentence(
    changes: dict[str, Any], verb: Callable[[Path, Path], None], toy: Path, tmp_path: Path
) -> None:
    change(toy / "config.json", **changes)
    with pytest.raises(MoeitsError) as error:
        verb(toy, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "healed").exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"type": "WordLevel", "unk_token": "?"}}'),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(
    file: str, content: str, verb: Callable[[Path, Path], None], toy: Path, tmp_path: Path
) -> None:
    (toy / file).write_text(content)
    with pytest.raises(MoeitsError, match="tokenizer") as error:
        verb(toy, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("verb", VERBS)
def test_a_token_that_the_model_does_not_have_is_one_sentence(
    verb: Callable[[Path, Path], None], toy: Path, tmp_path: Path
) -> None:
    tokenizer = json.loads((toy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<nope>"] = VOCAB
    (toy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(MoeitsError, match="they are not of one model"):
        verb(toy, tmp_path)


def test_parquet_of_other_than_usual_types_is_one_sentence(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"text": arrow.array([1, 2], arrow.uint8()), "when": arrow.array([1, 2], arrow.duration("ns"))}
    parquet.write_table(arrow.table(columns), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    wrong = 0
    for at in range(4, len(content) - 8):
        (tmp_path / "rows.parquet").write_bytes(content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :])
        try:
            list(read_rows(tmp_path / "rows.parquet"))
        except HealingError:
            wrong += 1
    assert wrong
