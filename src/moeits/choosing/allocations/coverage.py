"""Each layer keeps the smallest part of its order that has a share of the layer's score (SHAPE, arXiv 2606.09886)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder


@dataclass(frozen=True)
class Coverage:
    """The dial is that share, the same for all layers; a layer whose scores are all 0 keeps that share of its experts.

    Layers in which a few experts have most of the score lose many, those in which all have as much lose few.
    """

    name: ClassVar[str] = "coverage"
    dial: ClassVar[str | None] = "coverage"
    needs: ClassVar[str | None] = "scores"

    def range(self, orders: Mapping[int, EliminationOrder], most_steps: Mapping[int, int]) -> tuple[float, float]:  # noqa: ARG002
        return 0.0, 1.0

    def steps(self, at: float, orders: Mapping[int, EliminationOrder]) -> dict[int, int]:
        return {layer: _most_steps(at, order) for layer, order in orders.items()}


def _most_steps(share: float, order: EliminationOrder) -> int:
    """How many of the first in the order may go so that the others have that share."""
    scores = np.array(order.scores if any(order.scores or ()) else [1.0] * order.num_experts)
    going = scores[list(order.removed)]
    stays = scores.sum() - going.sum()
    # left[k]: what is left after k steps; summed from the last one on, so that it never rises.
    left = np.append(stays + np.cumsum(going[::-1])[::-1], stays)
    return int(np.count_nonzero(left >= share * left[0])) - 1 if share < 1 else 0


ALLOCATION = Coverage()
