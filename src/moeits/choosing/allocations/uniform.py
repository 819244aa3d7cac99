"""Every layer keeps the same share of its experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from moeits.choosing.elimination import EliminationOrder


@dataclass(frozen=True)
class Uniform:
    """The dial is the share that stays; a layer keeps that share of its experts, rounded up."""

    name: ClassVar[str] = "uniform"
    dial: ClassVar[str | None] = None
    needs: ClassVar[str | None] = None

    def range(self, orders: Mapping[int, EliminationOrder], most_steps: Mapping[int, int]) -> tuple[float, float]:  # noqa: ARG002
        return 0.0, 1.0

    def steps(self, at: float, orders: Mapping[int, EliminationOrder]) -> dict[int, int]:
        # A share that was a count before is that count again: 0.3 * 10 is a little more than 3.
        return {
            layer: min(order.num_experts - ceil(at * order.num_experts - 1e-9), len(order.removed))
            for layer, order in orders.items()
        }


ALLOCATION = Uniform()
