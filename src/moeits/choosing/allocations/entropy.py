"""Layers keep experts by how evenly their scores are spread: the entropy of the scores as shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder

_LEAST = 1e-3


@dataclass(frozen=True)
class Entropy:
    """A layer keeps the share c * H of its experts, at most all, with H the entropy of its scores over log E.

    With the scores of `frequency` H is that of how often experts are chosen, as in what the abstract of C-GNN-Prune
    says; its direction is not known, and here layers with a few favourites lose most (`EntropyReversed`: fewest). The
    dial is c, as a share of the one that keeps all.
    """

    name: ClassVar[str] = "entropy"
    dial: ClassVar[str | None] = None
    needs: ClassVar[str | None] = "scores"

    def range(self, orders: Mapping[int, EliminationOrder], most_steps: Mapping[int, int]) -> tuple[float, float]:  # noqa: ARG002
        return 0.0, 1.0

    def steps(self, at: float, orders: Mapping[int, EliminationOrder]) -> dict[int, int]:
        keeps = {layer: self._keeps(max(_entropy(order), _LEAST)) for layer, order in orders.items()}
        whole = min(keeps.values())
        return {layer: _gone(order, min(at * keeps[layer] / whole, 1.0)) for layer, order in orders.items()}

    def _keeps(self, entropy: float) -> float:
        """What a layer of that entropy keeps, beside others."""
        return entropy


class EntropyReversed(Entropy):
    """The other direction: a layer keeps the share c / H, so that those whose scores are spread evenly lose most."""

    name: ClassVar[str] = "entropy-reversed"

    def _keeps(self, entropy: float) -> float:
        return 1 / entropy


def _gone(order: EliminationOrder, share: float) -> int:
    """As many as leave at least that share."""
    return min(order.num_experts - ceil(share * order.num_experts - 1e-9), len(order.removed))


def _entropy(order: EliminationOrder) -> float:
    """Of the scores of a layer as shares, over its largest: 1 where all are equal, or none is above 0."""
    scores = np.array(order.scores or (), np.float64)
    if len(scores) < 2 or scores.sum() <= 0:
        return 1.0
    shares = scores[scores > 0] / scores.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(len(scores)))


ALLOCATION = Entropy()
REVERSED = EntropyReversed()
