"""Of all subsets of a layer's experts the one whose output is nearest to the whole layer's (NAEE, arXiv 2402.14800)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moeits.choosing.criteria import reconstruction
from moeits.choosing.elimination import EliminationOrder
from moeits.errors import EvidenceError
from moeits.evidence import Evidence
from moeits.signals import MOST_ENUMERATED


@dataclass(frozen=True)
class NAEE:
    """All subsets are tried of up to ten experts; beyond that experts go one by one, as by `reconstruction`.

    The published loss is a sum of norms over batches; here all tokens are one batch, so that the least norm is the
    least square. Gates are those of the model: renormalised only where it does so itself.
    """

    name: ClassVar[str] = "naee"
    needs: ClassVar[tuple[str, ...]] = reconstruction.CRITERION.needs
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = "uniform"
    chosen: ClassVar[str] = "replaceable"

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        greedy = reconstruction.CRITERION.rank(evidence, layer, rng)
        if greedy.num_experts > MOST_ENUMERATED:
            return greedy
        subsets, errors = evidence.of_pairs("naee").get(layer), evidence.of_experts("naee-error").get(layer)
        if subsets is None or errors is None or (subsets.astype(bool).sum(axis=1) != range(1, len(subsets) + 1)).any():
            raise EvidenceError(
                f"--criterion naee needs a subset of layer {layer} for each count, and the evidence has none. Make it "
                "again with: moeits calibrate MODEL --output signals.safetensors"
            )
        sets = tuple(tuple(map(int, np.flatnonzero(subsets[count]))) for count in reversed(range(len(subsets))))
        return replace(greedy, sets=sets, levels=_falling(errors))


CRITERION = NAEE()


def _falling(errors: np.ndarray) -> tuple[float, ...]:
    """Levels of the steps: minus the error of the subset that each leaves, never more than that of the step before."""
    return tuple(map(float, -np.maximum.accumulate(errors[:-1][::-1])))
