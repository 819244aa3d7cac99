"""What becomes of the weights that stay: nothing, or numbers made of those of several experts.

A plan decides which experts are put into which, and surgery computes the new weights as it writes them. To add one:
write `edits/<name>.py` with what fulfils `Edit`, and add its line to `EDITS` below (docs/extending.md). Several in one
plan are the business of `in_order`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, get_type_hints

import numpy as np

from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.settings import one_named
from moeits.typed_json import NotOfItsType, convert_typed

Group = tuple[tuple[int, float], ...]
"""Experts of the source and their weights, which are from 0 to 1 and sum to 1."""


@dataclass(frozen=True, kw_only=True)
class PlannedEdit:
    """What a plan says of the experts it keeps."""

    name: str
    groups: Mapping[int, Mapping[int, Group]] = field(default_factory=dict)
    """Decoder layer -> kept expert -> what it is made of. Whoever is not named stays as it is."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the edit; those not named have their default."""
    details: Mapping[int, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    """Decoder layer -> kept expert -> what an edit of every kept expert's own weights has to know of it."""
    then: tuple["PlannedEdit", ...] = ()
    """Edits of what this one makes, in order; they name none themselves."""

    @property
    def steps(self) -> tuple["PlannedEdit", ...]:
        """This one alone, and those that come after it."""
        return (replace(self, then=()), *self.then)

    @property
    def names(self) -> str:
        """As `--edit` has them."""
        return ",".join(step.name for step in self.steps)

    @property
    def ties(self) -> bool:
        """Whether it says something of single experts, so that no others can be kept."""
        return any(step.groups or step.details for step in self.steps)


class Edit(Protocol):
    """A way to make kept experts of several. All tensors of an expert are treated alike, its router row is kept.

    One that tells neurons apart says so with `blends` (`edits.neurons.OfNeurons`), and one that changes each expert on
    its own with `changed` (`edits.weights.OfWeights`): these are asked for that instead of `make`. Settings are fields
    of a dataclass; each is a flag.
    """

    name: ClassVar[str]
    weights: ClassVar[str]
    """What the card says of the weights: a sentence."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What evidence must know: "redundancy", or the name of a signal."""

    def groups(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Group]:
        """What the kept experts of a layer are made of, as far as it is not themselves alone."""
        ...

    def make(self, expert: int, group: Group, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """One tensor of a kept expert, of the shape and dtype that `read` gives of any expert: float32 or float64."""
        ...


from moeits.edits import aligned_average, average, low_rank, mask, none, quantize, recombine  # noqa: E402

EDITS: tuple[Edit, ...] = (
    none.EDIT,
    average.EDIT,
    aligned_average.EDIT,
    recombine.EDIT,
    mask.EDIT,
    low_rank.EDIT,
    quantize.EDIT,
)


def edit_named(name: str) -> Edit:
    """The edit of that name. Raises SettingError if there is none, with the nearest known name."""
    return one_named(name, EDITS, "edit")


def edit_of(name: str, settings: Mapping[str, Any]) -> Edit:
    """The edit of that name, set up. Raises SettingError for a setting that it does not have, or out of range."""
    edit = edit_named(name)
    if not settings:
        return edit
    own = get_type_hints(type(edit))
    for setting, value in settings.items():
        flag = f"--{setting.replace('_', '-')}"
        if setting not in {each.name for each in fields(edit)}:  # type: ignore[arg-type]
            raise SettingError(f"--edit {name} has no setting {setting}: leave {flag} out.")
        try:
            convert_typed(value, own[setting])
        except NotOfItsType as error:
            raise SettingError(f"{flag} {value!r:.40} is not what --edit {name} can use: {error}.") from None
    return replace(edit, **settings)  # type: ignore[type-var]
