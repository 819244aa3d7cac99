"""Algorithm 3 on another pair signal than the redundancy: router-cosine, correlation, gaussian and aligned alike."""

from dataclasses import dataclass, replace

import numpy as np

from moeits.choosing.criteria import moeits
from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence
from moeits.signals import PairSignal


@dataclass(frozen=True)
class ByPairSignal:
    """Of the two experts that are most alike, remove the one that is more like all the others."""

    signal: type[PairSignal]
    chosen: str
    needs_seed: bool = False
    allocation: str = "uniform"

    @property
    def name(self) -> str:
        return self.signal.name

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.signal.name,)

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        alike = replace(evidence, redundancy={layer: evidence.of_pairs(self.name)[layer]})
        return moeits.CRITERION.rank(alike, layer, rng)
