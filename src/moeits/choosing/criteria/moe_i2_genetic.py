"""MoE-I2, its first stage to the end: sets of experts by a genetic search, those of three layers chosen together."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.criteria.moe_i2 import CRITERION as IMPORTANCE
from moeits.choosing.criteria.sets import sets_of
from moeits.choosing.elimination import EliminationOrder
from moeits.errors import EvidenceError
from moeits.evidence import Evidence
from moeits.signals.watched import SEARCHED, seed_of_search


@dataclass(frozen=True)
class MoEI2Genetic:
    """The sets that `moeits calibrate --search-sets` found, of those counts alone (arXiv 2411.01016).

    Layers lose experts by the importance of theirs, as with the criterion `moe-i2`, whose plan tells the search its
    counts. What sources leave open, or is otherwise here: all tokens that choose are one batch, and a set's error is
    the norm of its change; shares of the search are those of a program after the paper; each field of three layers
    begins from the unpruned model's stream.
    """

    name: ClassVar[str] = SEARCHED
    needs: ClassVar[tuple[str, ...]] = (SEARCHED, "drop-error")
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = IMPORTANCE.allocation
    chosen: ClassVar[str] = "replaceable"
    has_levels: ClassVar[bool] = False

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        if seed_of_search(evidence.settings) is None:
            raise EvidenceError(
                "The evidence does not say by which seed its sets were searched for. Search again with: moeits "
                "calibrate MODEL --search-sets COUNT --output signals.safetensors"
            )
        by_importance = IMPORTANCE.rank(evidence, layer, rng)
        return EliminationOrder(
            num_experts=by_importance.num_experts,
            removed=by_importance.removed,
            scores=by_importance.scores,
            sets=sets_of(evidence, SEARCHED, layer),
        )


CRITERION = MoEI2Genetic()
