"""What becomes of the weights that stay: nothing, or numbers made of those of several experts.

A plan decides which experts are put into which, and surgery computes the new weights as it writes them. To add one:
write `edits/<name>.py` with what fulfils `Edit`, and add its line to `EDITS` below (docs/extending.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.settings import one_named

Group = tuple[tuple[int, float], ...]
"""Experts of the source and their weights, which are from 0 to 1 and sum to 1."""


@dataclass(frozen=True, kw_only=True)
class PlannedEdit:
    """What a plan says of the experts it keeps."""

    name: str
    groups: Mapping[int, Mapping[int, Group]] = field(default_factory=dict)
    """Decoder layer -> kept expert -> what it is made of. Whoever is not named stays as it is."""


class Edit(Protocol):
    """A way to make kept experts of several. All tensors of an expert are treated alike, its router row is kept."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """What evidence must know: "redundancy", or the name of a signal."""
    weights: ClassVar[str]
    """What the card says of the weights: a sentence."""

    def groups(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Group]:
        """What the kept experts of a layer are made of, as far as it is not themselves alone."""
        ...

    def make(self, expert: int, group: Group, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """One tensor of a kept expert, of the shape and dtype that `read` gives of any expert: float32 or float64."""
        ...


from moeits.edits import average, none  # noqa: E402

EDITS: tuple[Edit, ...] = (
    none.EDIT,
    average.EDIT,
)


def edit_named(name: str) -> Edit:
    """The edit of that name. Raises SettingError if there is none, with the nearest known name."""
    return one_named(name, EDITS, "edit")


def planned(name: str, evidence: Evidence, kept: Mapping[int, Sequence[int]]) -> PlannedEdit | None:
    """The edit of a plan that keeps these experts; None where nothing is edited."""
    edit = edit_named(name)
    check_known(edit, evidence)
    groups = {layer: edit.groups(evidence, layer, experts) for layer, experts in kept.items()}
    groups = {layer: of_layer for layer, of_layer in groups.items() if of_layer}
    return PlannedEdit(name=name, groups=groups) if groups else None


def check_known(edit: Edit, evidence: Evidence) -> None:
    """The evidence knows what the edit needs. Raises SettingError."""
    if missing := [need for need in edit.needs if not evidence.known(need)]:
        raise SettingError(
            f"--edit {edit.name} needs {' and '.join(missing)}, which this evidence does not have: score the model, "
            "and give moeits plan that file too."
        )
