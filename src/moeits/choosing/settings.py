"""What a plan is asked for: a budget, and who chooses."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any

from moeits.choosing.allocations import ALLOCATIONS
from moeits.choosing.criteria import CRITERIA
from moeits.choosing.pruning_plan import PruningPlan
from moeits.edits import EDITS
from moeits.edits.in_order import edits_of
from moeits.edits.settings import EditSettings
from moeits.errors import SettingError
from moeits.experts.inventory import MOST_EXPERTS
from moeits.settings import EXPERT, WHAT, setting


def share(text: Any, flag: str = "--reduction") -> float:
    """A share from 0 to 1, also written as a percentage such as 50%. Raises SettingError."""
    percent = isinstance(text, str) and text.strip().endswith("%")
    value = finite(text.strip().removesuffix("%") if percent else text, flag)
    value = value / 100 if percent else value
    if not 0 <= value <= 1:
        raise SettingError(f"{flag} {_shown(text)} is out of range: it is a share from 0 to 1, such as 0.5 or 50%.")
    return value


def finite(value: Any, flag: str) -> float:
    """A number. Raises SettingError for what is none, infinity and NaN among it."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not isfinite(number):
        raise SettingError(f"{flag} {_shown(value)} is not a number.")
    return number


def numbers(text: str, flag: str, *, most: int, example: str) -> tuple[str, ...]:
    """Of `A:B:STEP` all numbers, both ends included, or those of a list `A,B,C`; as texts, since they may be shares.

    Raises SettingError for what is neither, or more than `most` of them.
    """
    try:
        if ":" not in text:
            found = tuple(item.strip() for item in text.split(",") if item.strip())
            if len(found) > most:
                raise ValueError
            return found
        first, last, step = map(Decimal, text.split(":"))
        if step <= 0 or last < first or (last - first) / step >= most:
            raise ValueError
        return tuple(f"{first + step * number:f}" for number in range(int((last - first) / step) + 1))
    except (ValueError, ArithmeticError):
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise SettingError(
            f"{flag} {shown} is not a list of numbers, nor a range of at most {most}: write FIRST:LAST:STEP, "
            f"such as {example}, or a list."
        ) from None


def _shown(value: Any) -> str:
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "(a number of thousands of digits)"
    return text if len(text) <= 40 else f"{text[:40]}..."


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much goes: exactly one of these."""

    tau: float | None = setting(None, help="The paper's dial: remove pairs above mean + tau * iqr.", panel=WHAT)
    reduction: float | str | None = setting(
        None,
        help="Remove at least this share of the routed-expert parameters: 0.5 or 50%.",
        panel=WHAT,
        metavar="SHARE",
    )
    max_size: str | int | None = setting(
        None,
        help="At most this many bytes of tensors: 12GiB or 12G (of 1024), 12GB (of 1000).",
        panel=WHAT,
        metavar="SIZE",
    )
    experts_per_layer: int | None = setting(None, help="Keep this many experts in every layer.", panel=WHAT)
    like: str | Path | PruningPlan | None = setting(
        None, help="Keep the same number of experts in each layer as this plan.", panel=WHAT
    )

    def asked(self) -> tuple[str, Any]:
        """The one that was given, name and value. Raises SettingError where it is not one."""
        given: Mapping[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        asked = [(name, value) for name, value in given.items() if value is not None]
        if len(asked) != 1:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise SettingError(f"Give exactly one of {flags}" + (f", not {len(asked)}." if asked else "."))
        return asked[0]


@dataclass(frozen=True, kw_only=True)
class Choice(EditSettings):
    """How experts are ranked for removal, and how far down a layer may go."""

    criterion: str = setting(
        "moeits",
        help="How experts are ranked for removal; c-gnn is reconstructed from an abstract.",
        panel=WHAT,
        choices=tuple(each.name for each in CRITERIA),
    )
    allocation: str | None = setting(
        None,
        help="How removals are shared out among layers.",
        panel=EXPERT,
        choices=tuple(each.name for each in ALLOCATIONS),
        shown_default="the criterion's own",
    )
    multiple_of: int = setting(1, help="Counts of experts are multiples of this.", panel=EXPERT)
    min_experts: int | None = setting(
        None, help="No layer keeps fewer experts than this.", panel=EXPERT, shown_default="the layer's top_k"
    )
    seed: int = setting(0, help="Seed of a random criterion.", panel=EXPERT)
    edit: str = setting(
        "none",
        help=f"What becomes of kept experts, one edit or several in order: {', '.join(each.name for each in EDITS)}.",
        panel=EXPERT,
        metavar="EDIT[,EDIT]",
    )
    protect: str | Path | None = setting(
        None, help='JSON of experts that stay, by decoder layer: {"1": [68]}.', panel=EXPERT, metavar="FILE"
    )
    super_experts: bool | None = setting(
        None,
        help="Keep the few experts with outlying activations.",
        panel=EXPERT,
        negatable=True,
        shown_default="in criteria that watch tokens",
    )

    @property
    def edit_needs(self) -> tuple[str, ...]:
        """What evidence must know for the edits: "redundancy", or names of signals."""
        needs = (need for edit in edits_of(self.edit, self.of_edit()) for need in edit.needs)
        return tuple(dict.fromkeys(needs))

    def __post_init__(self) -> None:
        _ = self.edit_needs
        if self.min_experts is not None and self.min_experts < 1:
            raise SettingError(
                f"--min-experts {_shown(self.min_experts)} is out of range: a layer keeps at least one expert."
            )
        if not 1 <= self.multiple_of <= MOST_EXPERTS:
            raise SettingError(f"--multiple-of {_shown(self.multiple_of)} is out of range: give 1 or more.")
        if self.seed < 0:
            raise SettingError(f"--seed {_shown(self.seed)} is out of range: give 0 or more.")
