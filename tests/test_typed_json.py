"""JSON by type: what is not of its type is one sentence, whatever JSON it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moeits.errors import EvaluationError
from moeits.typed_json import Count, NotOfItsType, decode_typed, read_typed


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    size: Count
    level: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    rows: dict[int, list[Row]]
    settings: dict[str, Any]


GOOD = '{"kind": "table", "format": 1, "rows": {"3": [{"name": "a", "size": 5}]}, "settings": {}, "later": [1]}'


def read(path: Path, **changed: Any) -> Table:
    how = {"kind": "table", "format": 1, "what": "a table", "remedy": "Make it again."}
    return read_typed(path, Table, error=EvaluationError, **how | changed)


def test_a_file_is_read_by_its_type_and_passes_over_what_the_type_does_not_name(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(GOOD)
    assert read(tmp_path / "t.json") == Table(rows={3: [Row(name="a", size=5)]}, settings={})


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ('"size": 5', '"size": "5"', r"expected `int`, got `str` - at `\$.rows\[...\]\[0\].size`"),
        ('"size": 5', '"size": -1', r"`int` >= 0"),
        ('"size": 5', '"size": ' + "9" * 400, r"`int` <="),
        ('"size": 5', '"size": ' + "9" * 5000, ""),
        ('"size": 5', '"sise": 5', "missing required field `size`"),
        ('"settings": {}', '"settings": {"a": "\\ud800"}', ""),
        ('"settings": {}', '"settings": {"a": "\\uDC00\\uD800"}', ""),
        ('"settings": {}', '"settings": ' + '{"a":' * 100_000, "nested too deeply"),
        ('"3"', '"x"', "expected `int`, got `str`"),
        ('"table"', '"tables"', "it says it is 'tables'"),
        ('"kind": "table",', "", "it does not say so"),
        ('"format": 1', '"format": 2', "it has format 2, and this moeits reads format 1"),
        ('"format": 1', '"format": "' + "x" * 10_000 + '"', "it has format 'xxxx"),
        (GOOD, "", ""),
        (GOOD, "[]", "expected `object`, got `array`"),
    ],
)
def test_what_is_not_of_its_type_is_one_short_sentence(tmp_path: Path, was: str, becomes: str, says: str) -> None:
    (tmp_path / "t.json").write_text(GOOD.replace(was, becomes))
    with pytest.raises(EvaluationError, match=f"(?s)is not a table: .*{says}.* Make it again.") as refused:
        read(tmp_path / "t.json")
    assert len(str(refused.value)) < 300 + len(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(GOOD.encode().replace(b'"a"', b'"\xff"'))
    with pytest.raises(EvaluationError, match="is not a table: it is not UTF-8"):
        read(tmp_path / "t.json")


def test_a_file_too_large_or_missing_or_a_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(GOOD)
    with pytest.raises(EvaluationError, match="is not a table: it is larger than 20 bytes"):
        read(tmp_path / "t.json", most_bytes=20)
    with pytest.raises(EvaluationError, match=r"There is no .*none.json. Make it again."):
        read(tmp_path / "none.json")
    with pytest.raises(EvaluationError, match="No table"):
        read(tmp_path / "none.json", missing="No table.")
    with pytest.raises(EvaluationError, match="cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read(tmp_path / "a\0b")


def test_nan_and_infinity_are_not_numbers() -> None:
    for text, says in (("[NaN]", "it holds NaN"), ("[-Infinity]", "it holds -Infinity"), ("[1e999]", "out of range")):
        with pytest.raises(NotOfItsType, match=says):
            decode_typed(text, list[float])


def test_a_whole_surrogate_pair_is_a_character_and_half_of_one_is_not() -> None:
    assert decode_typed('"\\ud83d\\ude00"', str) == "\U0001f600"
    with pytest.raises(NotOfItsType, match="half of a surrogate pair"):
        decode_typed('"\\ud83d"', str)
