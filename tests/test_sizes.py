"""Sizes as people write them, and as they are shown."""

import pytest

from moeits.errors import SettingError
from moeits.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("12GiB", 12 * 1024**3),
        ("12G", 12 * 1024**3),
        ("12Gi", 12 * 1024**3),
        ("12GB", 12 * 1000**3),
        ("1.5k", 1536),
        (" 500 mb ", 500_000_000),
        ("1T", 1024**4),
        ("1048576", 1048576),
        (1048576, 1048576),
        ("7B", 7),
        ("9007199254740993", 9007199254740993),
        ("0", 0),
    ],
)
def test_a_size_is_read_as_gnu_reads_it(text: str | int, nbytes: int) -> None:
    assert parse_size(text, "--max-size") == nbytes


@pytest.mark.parametrize("text", ["", "G", "12X", "-1", "1e9", "twelve", "1" * 400, "9" * 30 + "TiB", "1,5GB"])
def test_what_is_no_size_is_a_sentence_with_its_flag(text: str) -> None:
    with pytest.raises(SettingError, match=r"^--max-size .{0,45} is not a size\. Write it like 12GiB or 12G "):
        parse_size(text, "--max-size")


@pytest.mark.parametrize("nbytes", [0, 1023, 1024, 5 * 1024**2, 7 * 1024**4])
def test_a_size_that_is_shown_can_be_read_again(nbytes: int) -> None:
    assert parse_size(format_size(nbytes), "--max-size") == nbytes
