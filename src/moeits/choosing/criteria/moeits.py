"""The paper's Algorithm 3: break up the most redundant pair, again and again."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence


@dataclass(frozen=True)
class MoEITS:
    """Of the most redundant pair, remove the expert that is more redundant with all the others."""

    name: ClassVar[str] = "moeits"
    needs: ClassVar[tuple[str, ...]] = ("redundancy",)
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = "threshold"
    chosen: ClassVar[str] = "redundant"

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:  # noqa: ARG002
        redundancy = evidence.redundancy[layer]
        mean, iqr = threshold_statistics(redundancy, evidence.settings.get("diagonal", "zero"))
        removed, levels = eliminate(redundancy)
        return EliminationOrder(
            num_experts=len(redundancy), removed=removed, levels=levels, mean=mean, iqr=iqr, pairs=redundancy
        )


CRITERION = MoEITS()


def eliminate(redundancy: np.ndarray) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Algorithm 3 run to the end on one matrix, (E, E): removed experts and the level of each step.

    Each step takes the largest entry with i < j, the first in row-major order on ties, and removes i if its mean over
    the current matrix is larger, else j. Which step comes next does not depend on tau, only where to stop does.
    """
    current, alive = redundancy.copy(), np.arange(len(redundancy))
    removed, levels = [], []
    while len(alive) > 1:
        upper = np.where(np.tri(len(alive), dtype=bool), -np.inf, current)
        i, j = divmod(int(upper.argmax()), len(alive))
        levels.append(float(current[i, j]))
        # Means come from the matrix itself: running sums would round, and of two experts the means must be equal.
        # On equal means the higher id goes, so that a plan does not depend on the order in which pairs were scored.
        goes = i if current[i].mean() > current[j].mean() else j
        removed.append(int(alive[goes]))
        alive = np.delete(alive, goes)
        current = np.delete(np.delete(current, goes, axis=0), goes, axis=1)
    return tuple(removed), tuple(levels)


def threshold_statistics(redundancy: np.ndarray, diagonal: str) -> tuple[float, float]:
    """Mean and interquartile range that a tau is measured by, over all E^2 entries (zero diagonal) or without it."""
    entries = redundancy if diagonal == "zero" else redundancy[~np.eye(len(redundancy), dtype=bool)]
    if entries.size == 0:
        return 0.0, 0.0
    upper, lower = np.percentile(entries, [75, 25])
    return float(entries.mean()), float(upper - lower)
