"""The edits of one plan, one after another: each works on the weights that the one before it made.

What they choose by (shares, norms, importances, errors of rounding) is always of the unpruned model, for nothing has
watched the weights in between. Between two edits weights are rounded to the dtype that they are stored in, so that two
in one plan are what pruning by the first and then editing its output by the second would give, bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from moeits.edits import Edit, PlannedEdit, edit_named, edit_of, none
from moeits.edits.low_rank import LowRank
from moeits.edits.weights import OfWeights
from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.signals.watched import flag_of

_OTHERS = "; all other weights are those of the source, bit for bit."


def edits_of(names: str, settings: Mapping[str, Any]) -> tuple[Edit, ...]:
    """The edits of these names, which commas separate, set up. Each gets the settings that it has.

    Raises SettingError for a setting that none of them has or that is out of range, and for edits that do not go
    together in this order.
    """
    own = {name: {each.name for each in fields(edit_named(name))} for name in _split(names)}  # type: ignore[arg-type]
    if len(own) == 1:
        return (edit_of(next(iter(own)), settings),)
    if odd := next((setting for setting in settings if not any(setting in known for known in own.values())), None):
        raise SettingError(f"--edit {names} has no setting {odd}: leave --{odd.replace('_', '-')} out.")
    edits = tuple(
        edit_of(name, {setting: value for setting, value in settings.items() if setting in known})
        for name, known in own.items()
    )
    _check_order(edits)
    return edits


def edits_in(planned: PlannedEdit) -> tuple[tuple[PlannedEdit, Edit], ...]:
    """What a plan says of each of its edits, and the edit, set up. Raises SettingError as `edits_of` does."""
    _ = _split(planned.names)
    found = tuple((step, edit_of(step.name, step.settings)) for step in planned.steps)
    _check_order([edit for _, edit in found])
    return found


def planned(
    names: str, settings: Mapping[str, Any], evidence: Evidence, kept: Mapping[int, Sequence[int]]
) -> PlannedEdit | None:
    """The edits of a plan that keeps these experts; None where nothing is edited."""
    edits = edits_of(names, settings)
    check_known(edits, evidence)
    steps = [step for edit in edits if (step := _planned(edit, settings, evidence, kept)) is not None]
    return replace(steps[0], then=tuple(steps[1:])) if steps else None


def _planned(
    edit: Edit, settings: Mapping[str, Any], evidence: Evidence, kept: Mapping[int, Sequence[int]]
) -> PlannedEdit | None:
    own = {each.name for each in fields(edit)}  # type: ignore[arg-type]
    settings = {name: value for name, value in settings.items() if name in own}
    groups = {layer: edit.groups(evidence, layer, experts) for layer, experts in kept.items()}
    groups = {layer: of_layer for layer, of_layer in groups.items() if of_layer}
    if not isinstance(edit, OfWeights):
        return PlannedEdit(name=edit.name, groups=groups, settings=settings) if groups else None
    details = {layer: edit.details(evidence, layer, experts) for layer, experts in kept.items()}
    details = {layer: of_layer for layer, of_layer in details.items() if of_layer}
    return PlannedEdit(name=edit.name, settings=settings, details=details)


def on_card(planned: PlannedEdit, *, as_factors: bool = False) -> str:
    """What a card says of the weights: a sentence, or one of each edit in order."""
    said = [edit_named(step.name).weights for step in planned.steps]
    if as_factors:
        said[-1] = LowRank.weights_as_factors
    if len(said) == 1:
        return said[0]
    in_order = ". ".join(each.removesuffix(_OTHERS) for each in said)
    return f"Those that are left were edited in this order. {in_order}{_OTHERS}"


def not_foreseen(names: str) -> tuple[str, ...]:
    """What a dry run says of an edit's work, which it does not count; nothing where weights are moved as bytes."""
    if names == none.EDIT.name:
        return ()
    return (
        f"--edit {names} computes weights of the experts that stay: the seconds and memory of that are not counted.",
    )


def check_known(edits: Sequence[Edit], evidence: Evidence) -> None:
    """The evidence knows what the edits need. Raises SettingError."""
    for edit in edits:
        if missing := [need for need in edit.needs if not evidence.layers.keys() <= evidence.known(need).keys()]:
            flag = flag_of(missing[0])
            asked = f"calibrate the model with {flag}" if flag else "calibrate the model"
            made_by = "score the model" if missing == ["redundancy"] else asked
            raise SettingError(
                f"--edit {edit.name} needs {' and '.join(missing)}, which this evidence does not have: {made_by}, "
                "and give moeits plan that file too."
            )


# ------------------------------------------------------------------------------------------------ what goes together


def _split(names: str) -> list[str]:
    """Raises SettingError for a name that is empty or there twice, or `none` beside others."""
    found = [name.strip() for name in names.split(",")]
    if "" in found:
        raise SettingError(f"--edit {names:.80} has an empty name: give names of edits, with one comma between two.")
    if twice := next((name for at, name in enumerate(found) if name in found[:at]), None):
        raise SettingError(f"--edit {names:.80} has {twice:.40} twice: give every edit once.")
    if len(found) > 1 and none.EDIT.name in found:
        raise SettingError(f"--edit {names:.80} has {none.EDIT.name} beside others: leave it out.")
    return found


def _check_order(edits: Sequence[Edit]) -> None:
    """No edit takes away all that one before it did, or wants experts as they were. Raises SettingError."""
    names = ",".join(edit.name for edit in edits)
    of_several = [edit.name for edit in edits if not isinstance(edit, OfWeights)]
    if len(of_several) > 1:
        raise SettingError(
            f"--edit {names} puts removed experts into those that stay twice, by {' and by '.join(of_several)}: give "
            "one of these."
        )
    if of_several and edits[0].name != of_several[0]:
        others = [edit.name for edit in edits if edit.name != of_several[0]]
        raise SettingError(
            f"--edit {names} has {of_several[0]} after an edit of the experts that stay, and it takes all experts as "
            f"they were: give {','.join((*of_several, *others))}."
        )
    for at, later in enumerate(edits):
        for before in edits[:at]:
            if isinstance(later, OfWeights) and (why := later.undoes.get(before.name)):
                raise SettingError(
                    f"--edit {names} would lose what {before.name} does, for {later.name} {why}: give "
                    f"{later.name},{before.name}, or one of the two."
                )
