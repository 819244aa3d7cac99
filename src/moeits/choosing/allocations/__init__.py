"""How removals are shared out among layers: one file per allocation, each a dial that a budget turns.

To add one: write its file and add its value to `ALLOCATIONS` (docs/extending.md).
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from moeits.choosing.elimination import EliminationOrder
from moeits.settings import one_named


class Allocation(Protocol):
    """A rule that says how far down its elimination order each layer is cut."""

    name: ClassVar[str]
    dial: ClassVar[str | None]
    """What plan.json calls a position of the dial, such as "tau"; None if nobody wants to know it."""
    needs: ClassVar[str | None]
    """What it asks of an order, "levels", "scores" or "pairs", without which it cannot share out."""

    def range(self, orders: Mapping[int, EliminationOrder], most_steps: Mapping[int, int]) -> tuple[float, float]:
        """Positions of the dial: one at which all goes that can go, and one at which nothing does."""

    def steps(self, at: float, orders: Mapping[int, EliminationOrder]) -> dict[int, int]:
        """How many steps each layer takes; never more at a larger `at`. Floors are none of its business."""


from moeits.choosing.allocations import coverage, entropy, global_levels, grape, moe_i2, threshold, uniform  # noqa: E402

ALLOCATIONS: tuple[Allocation, ...] = (
    threshold.ALLOCATION,
    uniform.ALLOCATION,
    global_levels.ALLOCATION,
    coverage.ALLOCATION,
    entropy.ALLOCATION,
    entropy.REVERSED,
    moe_i2.ALLOCATION,
    grape.ALLOCATION,
)


def allocation_named(name: str) -> Allocation:
    """The allocation of that name. Raises SettingError if there is none, with the nearest known name."""
    return one_named(name, ALLOCATIONS, "allocation")
