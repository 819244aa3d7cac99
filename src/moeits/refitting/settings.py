"""How the down projections are fitted."""

from dataclasses import dataclass

from moeits.errors import SettingError
from moeits.settings import EXPERT, setting

# Strengths of the correction for what earlier layers broke, of which each layer takes the best on held-out tokens.
DRIFTS = (0.0, 0.25, 0.5, 0.75, 1.0)

_ALSO = ("shared", "none")


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What a fit depends on beside its tokens."""

    largest_ridge: float = setting(
        10.0, help="Largest ridge tried; smaller ones follow while held-out tokens gain.", panel=EXPERT
    )
    smallest_ridge: float = setting(
        1e-6,
        help="Smallest ridge tried. 3 is safer for a large model and few tokens of another kind than its own.",
        panel=EXPERT,
    )
    drift: float | None = setting(
        None,
        help="How much of the error of earlier layers a layer corrects: 0 to 1.",
        panel=EXPERT,
        shown_default="the best on held-out tokens, for each layer",
    )

    also: str = setting(
        "shared",
        help="What is fitted beside the routed experts: the shared expert's down projection, or nothing.",
        panel=EXPERT,
        choices=_ALSO,
    )

    def __post_init__(self) -> None:
        if self.also not in _ALSO:
            raise SettingError(f"--also {self.also[:40]!r} is not one of {', '.join(_ALSO)}.")
        if not 1e-4 <= self.largest_ridge <= 1e4:
            raise SettingError(f"--largest-ridge {self.largest_ridge:g} is out of range: it is from 0.0001 to 10000.")
        if not 1e-6 <= self.smallest_ridge <= self.largest_ridge:
            raise SettingError(
                f"--smallest-ridge {self.smallest_ridge:g} is out of range: it is from 0.000001 to --largest-ridge."
            )
        if self.drift is not None and not 0 <= self.drift <= 1:
            raise SettingError(f"--drift {self.drift:g} is out of range: it is a share from 0 to 1.")

    @property
    def shared(self) -> bool:
        """Whether the shared expert is fitted."""
        return self.also == "shared"

    @property
    def drifts(self) -> tuple[float, ...]:
        """What is tried."""
        return DRIFTS if self.drift is None else (self.drift,)
