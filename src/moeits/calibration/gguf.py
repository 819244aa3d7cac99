"""Float32 tensors of a GGUF file (version 2 or 3, little-endian): as much of the format as an imatrix uses."""

from collections.abc import Callable
from io import SEEK_END, BufferedReader
from math import prod
from pathlib import Path
from struct import calcsize, unpack
from typing import Any

import numpy as np

from moeits.typed_json import NotOfItsType

_MAGIC = b"GGUF"
_FLOAT32 = 0
_STRING, _ARRAY = 8, 9
# Type of a value in the header -> its form.
_SIMPLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST = 2**24
"""No file has more tensors, entries of a header, or characters of a name; what claims so is not believed."""


def float_tensors(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Name -> numbers of the tensors that are wanted, axes as numpy has them. Raises NotOfItsType."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC or _number(file, "I") not in (2, 3):
            raise NotOfItsType("it is not a GGUF file of version 2 or 3")
        tensors, entries = _few(_number(file, "Q")), _few(_number(file, "Q"))
        header = dict(_entry(file) for _ in range(entries))
        infos = [_info(file) for _ in range(tensors)]
        alignment = header.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= _MOST:
            raise NotOfItsType("its alignment is out of range")
        begin = -(-file.tell() // alignment) * alignment
        return {name: _numbers(file, begin + at, shape, kind) for name, shape, kind, at in infos if wanted(name)}


def _entry(file: BufferedReader) -> tuple[str, Any]:
    return _text(file), _value(file, _number(file, "I"))


def _value(file: BufferedReader, kind: int) -> Any:
    if kind in _SIMPLE:
        return _number(file, _SIMPLE[kind])
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, count = _number(file, "I"), _few(_number(file, "Q"))
        if inner == _ARRAY:
            raise NotOfItsType("its header has arrays of arrays")
        return [_value(file, inner) for _ in range(count)]
    raise NotOfItsType(f"its header has a value of type {kind}")


def _info(file: BufferedReader) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = _text(file), _number(file, "I")
    if axes > 8:
        raise NotOfItsType(f"a tensor of it has {axes} axes")
    shape = tuple(_number(file, "Q") for _ in range(axes))[::-1]
    return name, shape, _number(file, "I"), _number(file, "Q")


def _numbers(file: BufferedReader, at: int, shape: tuple[int, ...], kind: int) -> np.ndarray:
    if kind != _FLOAT32:
        raise NotOfItsType("its counts are not float32")
    count = _few(prod(shape))
    if at > file.seek(0, SEEK_END):
        raise NotOfItsType("it ends early")
    file.seek(at)
    return np.frombuffer(_bytes(file, 4 * count), "<f4").astype(np.float64).reshape(shape)


def _number(file: BufferedReader, form: str) -> Any:
    return unpack(f"<{form}", _bytes(file, calcsize(f"<{form}")))[0]


def _text(file: BufferedReader) -> str:
    return _bytes(file, _few(_number(file, "Q"))).decode(errors="replace")


def _bytes(file: BufferedReader, count: int) -> bytes:
    read = file.read(count)
    if len(read) != count:
        raise NotOfItsType("it ends early")
    return read


def _few(count: int) -> int:
    if count > _MOST:
        raise NotOfItsType(f"it claims to hold {count:,} of something")
    return count
