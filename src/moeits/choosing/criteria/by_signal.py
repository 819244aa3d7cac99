"""Whoever has the least of a token signal goes first: what reap, ean, frequency and others have in common."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence


@dataclass(frozen=True)
class LeastOfSignal:
    """The order of a signal (E,), smallest first, ties by number. Levels are minus the `level` signal's values."""

    name: ClassVar[str]
    chosen: ClassVar[str]
    level: ClassVar[str]
    signal: ClassVar[str] = ""
    """The signal, if it is called otherwise than the criterion."""
    adds_up: ClassVar[bool] = True
    """Whether the signal is a score of which a set of experts has a share."""
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = "uniform"

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.signal or self.name, self.level)))

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:  # noqa: ARG002
        signal, levels = evidence.of_experts(self.needs[0])[layer], -evidence.of_experts(self.level)[layer]
        scores = tuple(map(float, signal)) if self.adds_up and min(signal) >= 0 else None
        return EliminationOrder.ranked(np.argsort(signal, kind="stable"), levels, scores)
