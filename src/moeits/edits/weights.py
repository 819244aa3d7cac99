"""Edits of every kept expert's own weights, matrix by matrix: to zeros, a lower rank, fewer bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from moeits.edits.none import Unedited
from moeits.evidence import Evidence

Detail = Mapping[str, Any]
"""What a plan says of one kept expert: JSON numbers and texts."""


@runtime_checkable
class OfWeights(Protocol):
    """An edit that changes the weights of each kept expert on its own; biases and router rows stay."""

    @property
    def undoes(self) -> Mapping[str, str]:
        """Name of an edit that cannot come before this one -> what this one does to all that it did: a verb, ..."""

    def details(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Detail]:
        """What the plan says of the kept experts of a layer. All of them are edited, also those not named."""
        ...

    def check(self, projection: str, shape: tuple[int, int], detail: Detail) -> None:
        """A matrix (outputs, inputs) can be edited so, by headers alone. Raises SettingError or PlanError."""
        ...

    def changed(self, projection: str, weight: np.ndarray, detail: Detail) -> np.ndarray:
        """(outputs, inputs) float32 -> the same shape."""
        ...


@dataclass(frozen=True)
class OnItsOwn(Unedited):
    """What such edits have in common: no expert is made of several."""

    @property
    def undoes(self) -> Mapping[str, str]:
        return {}

    def details(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Detail]:  # noqa: ARG002
        return {}

    def check(self, projection: str, shape: tuple[int, int], detail: Detail) -> None:
        pass
