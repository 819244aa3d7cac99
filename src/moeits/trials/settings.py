"""What is tried, and on what."""

from collections.abc import Iterable
from dataclasses import dataclass

from moeits.choosing.criteria import CRITERIA, criterion_named
from moeits.choosing.settings import finite, numbers, share
from moeits.errors import SettingError
from moeits.settings import WHAT, setting

_MOST_SIZES = 100
_EXAMPLE = "0.125:0.75:0.125"


@dataclass(frozen=True, kw_only=True)
class Forecasting:
    """Which sizes are looked at, and when one is called safe."""

    reductions: str = setting(
        _EXAMPLE,
        help="Shares of the routed-expert parameters: FIRST:LAST:STEP, or a list such as 25%,50%.",
        panel=WHAT,
        metavar="SHARES",
    )
    criterion: str = setting(
        "reconstruction", help="Who chooses.", panel=WHAT, choices=tuple(each.name for each in CRITERIA)
    )
    budget: float = setting(
        0.05, help="A size is called safe while the loss rises by less, in nats per token.", panel=WHAT
    )

    def __post_init__(self) -> None:
        criterion_named(self.criterion)
        if not 0 < finite(self.budget, "--budget") <= 100:
            raise SettingError(f"--budget {self.budget:g} is out of range: it is above 0, in nats per token.")
        if not self.shares:
            raise SettingError(f"--reductions names no size: write {_EXAMPLE}, or a list such as 25%,50%.")

    @property
    def shares(self) -> tuple[float, ...]:
        """Ascending, each once."""
        return _between(numbers(self.reductions, "--reductions", most=_MOST_SIZES, example=_EXAMPLE))


def _between(texts: Iterable[str]) -> tuple[float, ...]:
    found = sorted({share(text, "--reductions") for text in texts})
    for value in found:
        if not 0 < value < 1:
            raise SettingError(f"--reductions {value:g} is out of range: each is above 0 and below 1.")
    return tuple(found)
