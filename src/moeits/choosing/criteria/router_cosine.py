"""Algorithm 3 on how alike the rows of the router are, in place of redundancy."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moeits.choosing.criteria import moeits
from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence


@dataclass(frozen=True)
class RouterCosine:
    """Of the two experts whose router rows are most alike, remove the one that is more like all the others."""

    name: ClassVar[str] = "router-cosine"
    needs: ClassVar[tuple[str, ...]] = ("router-cosine",)
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = "uniform"
    chosen: ClassVar[str] = "alike to the router"

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        alike = replace(evidence, redundancy={layer: evidence.of_pairs(self.name)[layer]})
        return moeits.CRITERION.rank(alike, layer, rng)


CRITERION = RouterCosine()
