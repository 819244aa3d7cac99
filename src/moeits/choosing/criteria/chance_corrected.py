"""Algorithm 3 on what stands above the noise floor: what independent weights would show too counts for nothing."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moeits.choosing.criteria import moeits
from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence


@dataclass(frozen=True)
class ChanceCorrected:
    """The order of MoEITS on R minus its floor (docs/method.md, section 5); a tau is measured there too."""

    name: ClassVar[str] = "chance-corrected"
    needs: ClassVar[tuple[str, ...]] = ("redundancy",)
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = "threshold"
    chosen: ClassVar[str] = "redundant beyond chance"

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        floor = evidence.floor.get(layer, 0.0)
        above = replace(evidence, redundancy={layer: evidence.redundancy[layer] - floor})
        return moeits.CRITERION.rank(above, layer, rng)


CRITERION = ChanceCorrected()
