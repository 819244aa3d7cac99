"""What becomes of the weights that stay: nothing, or numbers made of those of several experts.

A plan decides which experts are put into which, and surgery computes the new weights as it writes them. To add one:
write `edits/<name>.py` with what fulfils `Edit`, and add its line to `EDITS` below (docs/extending.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, get_type_hints

import numpy as np

from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.settings import one_named
from moeits.signals.watched import INPUT_NORMS, ROUNDING_BITS, rounding_error
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

    @property
    def ties(self) -> bool:
        """Whether it says something of single experts, so that no others can be kept."""
        return bool(self.groups or self.details)


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
from moeits.edits.weights import OfWeights  # noqa: E402

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


def planned(
    name: str, settings: Mapping[str, Any], evidence: Evidence, kept: Mapping[int, Sequence[int]]
) -> PlannedEdit | None:
    """The edit of a plan that keeps these experts; None where nothing is edited."""
    edit = edit_of(name, settings)
    check_known(edit, evidence)
    groups = {layer: edit.groups(evidence, layer, experts) for layer, experts in kept.items()}
    groups = {layer: of_layer for layer, of_layer in groups.items() if of_layer}
    if not isinstance(edit, OfWeights):
        return PlannedEdit(name=name, groups=groups, settings=settings) if groups else None
    details = {layer: edit.details(evidence, layer, experts) for layer, experts in kept.items()}
    details = {layer: of_layer for layer, of_layer in details.items() if of_layer}
    return PlannedEdit(name=name, settings=settings, details=details)


def not_foreseen(name: str) -> tuple[str, ...]:
    """What a dry run says of an edit's work, which it does not count; nothing where weights are moved as bytes."""
    if name == none.EDIT.name:
        return ()
    return (
        f"--edit {name} computes weights of the experts that stay: the seconds and memory of that are not counted.",
    )


def check_known(edit: Edit, evidence: Evidence) -> None:
    """The evidence knows what the edit needs. Raises SettingError."""
    if missing := [need for need in edit.needs if not evidence.layers.keys() <= evidence.known(need).keys()]:
        made_by = "score the model" if missing == ["redundancy"] else f"calibrate the model{_flag_of(missing[0])}"
        raise SettingError(
            f"--edit {edit.name} needs {' and '.join(missing)}, which this evidence does not have: {made_by}, "
            "and give moeits plan that file too."
        )


def _flag_of(signal: str) -> str:
    """How a signal is asked for, where calibrating does not find it by itself."""
    if signal in map(rounding_error, ROUNDING_BITS):
        return " with --rounding-errors"
    return " with --input-norms" if signal in INPUT_NORMS else ""
