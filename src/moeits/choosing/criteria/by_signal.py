"""Whoever has the least of a token signal goes first: what reap, ean, frequency and others have in common."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.errors import EvidenceError
from moeits.evidence import Evidence


@dataclass(frozen=True)
class LeastOfSignal:
    """The order of a signal (E,), smallest first, ties by number. Levels are minus the `level` signal's values."""

    name: ClassVar[str]
    chosen: ClassVar[str]
    level: ClassVar[str]
    needs_redundancy: ClassVar[bool] = False
    needs_seed: ClassVar[bool] = False

    def order(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:  # noqa: ARG002
        """Raises EvidenceError if the evidence has no such signal."""
        signal, level = (evidence.signals.get(name, {}).get(layer) for name in (self.name, self.level))
        if signal is None or level is None:
            raise EvidenceError(
                f"The criterion {self.name} needs what moeits calibrate finds, and the evidence has no {self.name} of "
                f"layer {layer}. Make it with: moeits calibrate MODEL --output signals.safetensors"
            )
        removed = tuple(map(int, np.argsort(signal, kind="stable")))
        levels = -level
        upper, lower = np.percentile(levels, [75, 25])
        return EliminationOrder(
            num_experts=len(signal),
            removed=removed[:-1],
            levels=tuple(float(levels[e]) for e in removed[:-1]),
            mean=float(levels.mean()),
            iqr=float(upper - lower),
        )
