"""The paper's: each layer stops at its own threshold, mean + tau * iqr (Algorithm 3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder

_LARGEST_TAU = 1e100


@dataclass(frozen=True)
class Threshold:
    """One tau for all layers, measured by the mean and the interquartile range of each."""

    name: ClassVar[str] = "threshold"
    dial: ClassVar[str | None] = "tau"
    needs: ClassVar[str | None] = "levels"

    def range(self, orders: Mapping[int, EliminationOrder], most_steps: Mapping[int, int]) -> tuple[float, float]:
        """A tau below and one above all critical taus, (level - mean) / iqr, of layers that have a spread."""
        critical = [
            (level - order.mean) / order.iqr
            for layer, order in orders.items()
            if order.iqr > 0 and order.levels is not None
            for level in order.levels[: most_steps[layer]]
        ]
        # Scores may be such that these overflow; then no tau tells such steps apart.
        bounds = np.clip((min(critical, default=0.0), max(critical, default=0.0)), -_LARGEST_TAU, _LARGEST_TAU)
        low, high = map(float, bounds)
        return low - 1 - 1e-6 * abs(low), high + 1 + 1e-6 * abs(high)

    def steps(self, at: float, orders: Mapping[int, EliminationOrder]) -> dict[int, int]:
        return {layer: order.steps_at(at) for layer, order in orders.items()}


ALLOCATION = Threshold()
