"""Whoever is at the end of an expert signal that it calls the first to go: what aimer and the norms have in common."""

from dataclasses import dataclass

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence
from moeits.signals import ExpertSignal


@dataclass(frozen=True)
class ByExpertSignal:
    """The order of a signal (E,) read off the weights, the lower id first on ties. Its values are the levels."""

    signal: type[ExpertSignal]
    chosen: str
    needs_seed: bool = False
    allocation: str = "uniform"

    @property
    def name(self) -> str:
        return self.signal.name

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.signal.name,)

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:  # noqa: ARG002
        values = evidence.of_experts(self.name)[layer]
        levels = values if self.signal.goes_first == "largest" else -values
        return EliminationOrder.ranked(np.argsort(-levels, kind="stable"), levels)
