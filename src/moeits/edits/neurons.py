"""Neurons of kept experts as sums of other neurons, which an edit settles for a whole layer before a tensor is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from moeits.edits import Group

ReadNeurons = Callable[[int], Mapping[str, np.ndarray]]
"""Expert -> its weights by projection, (I, H) float32: a row for each neuron, a column of the down projection too."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What one expert adds to the neurons of a new one: its neuron `neurons[i]` times `shares[i]` to `made[i]`."""

    neurons: np.ndarray
    made: np.ndarray
    shares: np.ndarray
    """float64."""

    def add(self, rows: np.ndarray, total: np.ndarray) -> None:
        """Add to `total` (I, ...) float64 what some weights of that expert, (I, ...), give."""
        order = np.argsort(self.made, kind="stable")
        made = self.made[order]
        shares = self.shares[order].reshape(-1, *[1] * (rows.ndim - 1))
        added = rows[self.neurons[order]] * shares
        starts = np.flatnonzero(np.diff(made, prepend=-1))
        if len(starts):
            total[made[starts]] += np.add.reduceat(added, starts, axis=0)


Blend = Mapping[int, Terms]
"""Expert of the source -> what it adds to one new expert."""


@runtime_checkable
class OfNeurons(Protocol):
    """An edit that tells neurons apart: weights and biases of a neuron, a column of down among them, move together."""

    def blends(self, groups: Mapping[int, Group], read: ReadNeurons) -> Mapping[int, Blend]:
        """Of the groups of one layer: kept expert -> what its neurons are made of. Who is not named stays as it is."""
        ...
