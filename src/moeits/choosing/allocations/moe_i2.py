"""Layers lose experts by the inverse of their importance, the sum of what their experts score (MoE-I2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moeits.choosing.elimination import EliminationOrder

_LITTLE = 1e-12


@dataclass(frozen=True)
class MoEI2:
    """A layer loses floor(t / I), with I the sum of its scores; the dial is the unused share of the largest t.

    With the scores of the criterion `moe-i2` that is MoE-I2's first stage (arXiv 2411.01016). The paper does not state
    the map; this is the one of a program after it, which gives what is left over by the largest fractions.
    """

    name: ClassVar[str] = "moe-i2"
    dial: ClassVar[str | None] = None
    needs: ClassVar[str | None] = "scores"

    def range(self, orders: Mapping[int, EliminationOrder], most_steps: Mapping[int, int]) -> tuple[float, float]:  # noqa: ARG002
        return 0.0, 1.0

    def steps(self, at: float, orders: Mapping[int, EliminationOrder]) -> dict[int, int]:
        rates = {layer: 1 / (sum(order.scores or ()) + _LITTLE) for layer, order in orders.items()}
        # At the largest t the layer that loses experts most slowly has lost all that can go.
        most = max(len(order.removed) / rates[layer] for layer, order in orders.items())
        return {
            layer: min(int((1 - at) * most * rates[layer] + 1e-9), len(order.removed))
            for layer, order in orders.items()
        }


ALLOCATION = MoEI2()
