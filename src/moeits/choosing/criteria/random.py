"""The control that every comparison needs: experts removed at random."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence


@dataclass(frozen=True)
class Random:
    """A random permutation per layer; it has no levels, so it takes every budget but a tau."""

    name: ClassVar[str] = "random"
    needs: ClassVar[tuple[str, ...]] = ()
    needs_seed: ClassVar[bool] = True
    allocation: ClassVar[str] = "uniform"
    chosen: ClassVar[str] = "randomly chosen"

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        count = evidence.layers[layer].num_experts
        return EliminationOrder(num_experts=count, removed=tuple(map(int, rng.permutation(count)[:-1])))


CRITERION = Random()
