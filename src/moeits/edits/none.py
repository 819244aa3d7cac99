"""Kept experts stay as they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.edits import Edit, Group
from moeits.evidence import Evidence


@dataclass(frozen=True)
class Unedited:
    """The paper's surgery: removed experts are gone, others are moved as bytes."""

    name: ClassVar[str] = "none"
    needs: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[str] = ""

    def groups(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Group]:  # noqa: ARG002
        return {}

    def make(self, expert: int, group: Group, read: Callable[[int], np.ndarray]) -> np.ndarray:  # noqa: ARG002
        return read(expert)


EDIT: Edit = Unedited()
