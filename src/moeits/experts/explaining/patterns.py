"""The names of a checkpoint's tensors without their numbers: a thousand experts are one line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from moeits.checkpoint.reading import TensorInfo

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
NUMBER = "#"
"""What a number of a name is written as; the first is the layer's."""


@dataclass(frozen=True)
class Pattern:
    """Tensors whose names differ in numbers only."""

    name: str
    """With `#` in the place of each number."""
    tensors: Mapping[tuple[int, ...], TensorInfo]
    """The numbers in the name -> the tensor."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Each shape once, as they come."""
        return list(dict.fromkeys(info.shape for info in self.tensors.values()))

    @property
    def dtypes(self) -> list[str]:
        """Each dtype once."""
        return list(dict.fromkeys(info.dtype for info in self.tensors.values()))

    @property
    def layers(self) -> set[int]:
        """The first numbers."""
        return {numbers[0] for numbers in self.tensors if numbers}

    def all_have(self, axes: int, entries: int, at: int = 0) -> bool:
        """Whether all of its tensors have so many axes, one of them with so many entries."""
        return all(len(shape) == axes and shape[at] == entries for shape in self.shapes)


def patterns_of(tensors: Mapping[str, TensorInfo]) -> dict[str, Pattern]:
    """The patterns of a checkpoint, in the order of its tensors."""
    found: dict[str, dict[tuple[int, ...], TensorInfo]] = {}
    for name, info in tensors.items():
        # A name may have `#` in it already; it is then a pattern of its own, and no number is found there.
        numbers = tuple(int(number[0]) for number in _NUMBER.finditer(name) if len(number[0]) < 10)
        found.setdefault(_NUMBER.sub(NUMBER, name), {})[numbers] = info
    return {name: Pattern(name, of) for name, of in found.items()}


def as_shown(name: str, expert_list: str) -> str:
    """A pattern with {layer}, {expert} and {n} in the place of its numbers."""
    if expert_list and name.startswith((f"{expert_list}.{NUMBER}.", f"{expert_list}.{NUMBER}")):
        name = name.replace(f"{expert_list}.{NUMBER}", f"{expert_list}.{{expert}}", 1)
    return name.replace(NUMBER, "{layer}", 1).replace(NUMBER, "{n}")
