"""The layer with most redundancy left loses the next expert, with a brake on layers that fall behind (GRAPE)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import log
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder

_BRAKE = 0.1
"""By how much the entropy of the counts may fall; the paper does not give it, a program after it has this."""


@dataclass(frozen=True)
class Grape:
    """Redundancy left is the sum of a layer's pairs that are both there; the dial is the share of all steps not taken.

    A step after which the entropy of the layers' shares of all experts is below (1 - 0.1) of that at the beginning
    freezes its layer, until all are frozen. GRAPE merges the pair; here the criterion says who of a layer goes, and
    with `moeits` that is the paper's pair. What it is made of is a matter of --edit.
    """

    name: ClassVar[str] = "grape"
    dial: ClassVar[str | None] = None
    needs: ClassVar[str | None] = "pairs"

    def range(self, orders: Mapping[int, EliminationOrder], most_steps: Mapping[int, int]) -> tuple[float, float]:  # noqa: ARG002
        return 0.0, 1.0

    def steps(self, at: float, orders: Mapping[int, EliminationOrder]) -> dict[int, int]:
        total = sum(len(order.removed) for order in orders.values())
        taken = dict.fromkeys(orders, 0)
        for layer in islice(_sequence(orders), round((1 - at) * total)):
            taken[layer] += 1
        return taken


def _sequence(orders: Mapping[int, EliminationOrder]) -> Iterator[int]:
    """The layer of each step, to the last."""
    left = {layer: _left(order) for layer, order in orders.items()}
    counts, taken = {layer: order.num_experts for layer, order in orders.items()}, dict.fromkeys(orders, 0)
    least, frozen = (1 - _BRAKE) * _entropy(counts), set[int]()
    while open_layers := [layer for layer in orders if taken[layer] < len(orders[layer].removed)]:
        if frozen.issuperset(open_layers):
            frozen.clear()
        layer = max((i for i in open_layers if i not in frozen), key=lambda i: (left[i][taken[i]], -i))
        taken[layer] += 1
        counts[layer] -= 1
        yield layer
        if _entropy(counts) < least:
            frozen.add(layer)


def _left(order: EliminationOrder) -> list[float]:
    """The sum over pairs of those that are there, before each step."""
    assert order.pairs is not None
    alive, sums = np.ones(order.num_experts, bool), [float(order.pairs.sum())]
    for expert in order.removed:
        alive[expert] = False
        sums.append(sums[-1] - 2 * float(order.pairs[expert][alive].sum()))
    return sums


def _entropy(counts: Mapping[int, int]) -> float:
    total = sum(counts.values())
    return -sum(count / total * log(count / total) for count in counts.values() if count)


ALLOCATION = Grape()
