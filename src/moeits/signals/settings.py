"""How redundancy is scored, and what that may take of the machine."""

from collections.abc import Mapping
from dataclasses import dataclass

from moeits.errors import SettingError
from moeits.settings import EXPERT, SCORING, setting
from moeits.signals import ESTIMATORS

PRESETS = ("paper", "authors-code")
DIAGONALS = ("zero", "excluded")


def parse_weights(text: str) -> dict[str, float]:
    """`gate=0.2,up=0.4,down=0.4` as a mapping. Raises SettingError."""
    try:
        return {name.strip(): float(value) for name, value in (item.split("=") for item in text.split(","))}
    except ValueError:
        raise SettingError(
            f"--projection-weights {text} cannot be read: write it like gate=0.2,up=0.4,down=0.4."
        ) from None


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What the scores depend on."""

    preset: str = setting(
        "paper",
        help="Projection weights: their mean, or those of the authors' program.",
        panel=SCORING,
        choices=PRESETS,
    )
    estimator: str = setting(
        "nmi",
        help="How redundancy is estimated.",
        panel=SCORING,
        choices=tuple(each.name for each in ESTIMATORS),
    )
    bins: str | int = setting("auto", help="Bins of a weight's histogram: auto, or a number.", panel=EXPERT)
    projection_weights: Mapping[str, float] | None = setting(
        None, help="Projection weights by hand.", panel=EXPERT, metavar="gate=W,up=W,down=W", parse=parse_weights
    )
    diagonal: str = setting(
        "zero", help="The zeros R_ii in mean and iqr: zero lets them count.", panel=EXPERT, choices=DIAGONALS
    )

    def __post_init__(self) -> None:
        for name, choices in (("preset", PRESETS), ("diagonal", DIAGONALS)):
            if getattr(self, name) not in choices:
                raise SettingError(f"--{name} {getattr(self, name)} is not one of {', '.join(choices)}.")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a scoring may take; the scores do not depend on it."""

    threads: int | None = setting(None, help="Threads of the scoring.", panel=SCORING, shown_default="all cores")
    memory: str | int = setting(
        "2GiB", help="Bound on the encoded weights held at once.", panel=SCORING, metavar="SIZE"
    )

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise SettingError(f"--threads {self.threads} is out of range: give 1 or more.")
