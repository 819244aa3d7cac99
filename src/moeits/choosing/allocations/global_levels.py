"""All layers as one: whoever has the highest level goes next, whichever layer it is in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moeits.choosing.elimination import EliminationOrder


@dataclass(frozen=True)
class GlobalLevels:
    """One level for all layers, with which the levels of the criterion are compared as they are."""

    name: ClassVar[str] = "global"
    dial: ClassVar[str | None] = "level"
    needs: ClassVar[str | None] = "levels"

    def range(self, orders: Mapping[int, EliminationOrder], most_steps: Mapping[int, int]) -> tuple[float, float]:
        """A level below and one above all that can be taken."""
        levels = [level for layer, order in orders.items() for level in (order.levels or ())[: most_steps[layer]]] or [
            0.0
        ]
        margin = 1 + 1e-6 * max(map(abs, levels))
        return min(levels) - margin, max(levels) + margin

    def steps(self, at: float, orders: Mapping[int, EliminationOrder]) -> dict[int, int]:
        return {layer: order.steps_above(at) for layer, order in orders.items()}


ALLOCATION = GlobalLevels()
