"""`edit` of plan.json: an edit, or a list of edits in order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isclose
from typing import Annotated, Any

from msgspec import Meta, Struct

from moeits.edits import PlannedEdit
from moeits.errors import PlanError
from moeits.experts.inventory import MOST_EXPERTS

Scalar = str | bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float | None
ExpertId = Annotated[int, Meta(ge=0, lt=MOST_EXPERTS)]
LayerNumber = Annotated[int, Meta(ge=0, le=2**31)]
_Weight = Annotated[float, Meta(ge=0, le=1)]


class StoredEdit(Struct):
    """One edit."""

    name: str
    groups: dict[LayerNumber, dict[ExpertId, list[tuple[ExpertId, _Weight]]]] = {}
    settings: dict[str, Scalar] = {}
    details: dict[LayerNumber, dict[ExpertId, dict[str, Scalar]]] = {}


def read_edit(stored: StoredEdit | list[StoredEdit] | None) -> PlannedEdit | None:
    """Raises PlanError for a list of none."""
    if stored is None:
        return None
    steps = [_read(each) for each in (stored if isinstance(stored, list) else [stored])]
    if not steps:
        raise PlanError("`edit` is a list of no edits: leave it out")
    return replace(steps[0], then=tuple(steps[1:]))


def _read(stored: StoredEdit) -> PlannedEdit:
    groups = {
        layer: {expert: tuple(group) for expert, group in of_layer.items()} for layer, of_layer in stored.groups.items()
    }
    return PlannedEdit(name=stored.name, groups=groups, settings=stored.settings, details=stored.details)


def edit_facts(edit: PlannedEdit) -> dict[str, Any] | list[dict[str, Any]]:
    """As plan.json holds it."""
    return [_facts(step) for step in edit.steps] if edit.then else _facts(edit)


def _facts(edit: PlannedEdit) -> dict[str, Any]:
    groups = {
        str(layer): {str(expert): [list(member) for member in group] for expert, group in of_layer.items()}
        for layer, of_layer in edit.groups.items()
    }
    details = {
        str(layer): {str(expert): dict(detail) for expert, detail in of_layer.items()}
        for layer, of_layer in edit.details.items()
    }
    return {
        "name": edit.name,
        **({"settings": dict(edit.settings)} if edit.settings else {}),
        "groups": groups,
        **({"details": details} if details else {}),
    }


def check_edit(edit: PlannedEdit | None, kept: Mapping[int, Sequence[int]], num_experts: Mapping[int, int]) -> None:
    """Every group is of a kept expert, made of experts that the layer has, with weights that sum to 1.

    Raises PlanError.
    """
    for step in edit.steps if edit else ():
        for layer, details in step.details.items():
            if odd := sorted(details.keys() - set(kept.get(layer, ()))):
                raise PlanError(f"`edit` says something of expert {odd[0]} of layer {layer}, which is not kept")
        for layer, groups in step.groups.items():
            if layer not in kept:
                raise PlanError(f"`edit` has layer {layer}, of which `kept` says nothing")
            for expert, group in groups.items():
                _check_group(layer, expert, group, kept[layer], num_experts)


def _check_group(
    layer: int,
    expert: int,
    group: Sequence[tuple[int, float]],
    kept: Sequence[int],
    num_experts: Mapping[int, int],
) -> None:
    if expert not in kept:
        raise PlanError(f"`edit` makes expert {expert} of layer {layer}, which is not kept")
    if beyond := [member for member, _ in group if member >= num_experts.get(layer, MOST_EXPERTS)]:
        raise PlanError(f"`edit` takes expert {beyond[0]} of layer {layer}, which has {num_experts[layer]}")
    if not isclose(sum(weight for _, weight in group), 1, abs_tol=1e-6):
        raise PlanError(f"the weights of expert {expert} in layer {layer} in `edit` do not sum to 1")
