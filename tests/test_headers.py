"""Headers of strangers: sizes that no file has are one short sentence, at once."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError


def with_entry(folder: Path, name: str, shape: list[int], offsets: list[Any], dtype: str = "X") -> Path:
    text = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return with_header(folder, text)


def with_header(folder: Path, text: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return folder


@pytest.mark.parametrize(
    ("name", "shape", "offsets", "message"),
    [
        ("model.layers." + "9" * 5000 + ".x", [0], [0, 0], "has 5015 characters"),
        ("x", [1], [0, int("9" * 4300)], "not sizes"),
        ("x", [10**4000, 10**4000], [0, 0], "not sizes"),
        ("x", [2**62] * 200_000, [0, 0], "200000 axes"),
        ("x", [2**40] * 60, [0, 0], "more entries than a file can hold"),
        ("x", [-1], [0, 0], "not sizes"),
    ],
)
def test_a_size_that_no_file_has_is_a_short_sentence(
    tmp_path: Path, name: str, shape: list[int], offsets: list[int], message: str
) -> None:
    folder = with_entry(tmp_path / "model", name, shape, offsets)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(folder)
    assert len(str(caught.value)) < 300


def test_a_header_of_millions_of_empty_objects_is_refused_unread(tmp_path: Path) -> None:
    folder = with_header(tmp_path / "model", b'{"x":[' + b"{}," * 3_000_000 + b"{}]}")
    with pytest.raises(CheckpointError, match="more than a million tensors"):
        Checkpoint.open(folder)
