"""MoP: generalists, and for every domain of tokens an expert that is particular about it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.criteria import reconstruction
from moeits.choosing.criteria.sets import sets_of
from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence
from moeits.signals.watched import SPECIALISTS


@dataclass(frozen=True)
class MoP:
    """The sets that `moeits calibrate --specialists` found, one for each count.

    What the paper leaves open, or is otherwise here: half of a set are generalists; the domains are of whatever text is
    given, one kind of it or many.
    """

    name: ClassVar[str] = "mop"
    needs: ClassVar[tuple[str, ...]] = (SPECIALISTS, "reconstruction", "reconstruction-error")
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = "uniform"
    chosen: ClassVar[str] = "neither general nor special"
    has_levels: ClassVar[bool] = False

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        greedy = reconstruction.CRITERION.rank(evidence, layer, rng)
        sets = sets_of(evidence, SPECIALISTS, layer)
        return EliminationOrder(num_experts=greedy.num_experts, removed=greedy.removed, sets=sets)


CRITERION = MoP()
