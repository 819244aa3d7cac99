"""As `average`, with neurons of removed experts first put in the order in which they match those of the kept one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.edits import Edit, Group
from moeits.edits.average import Average
from moeits.edits.neurons import Blend, ReadNeurons, Terms
from moeits.signals.aligned import matching, unit_neurons


@dataclass(frozen=True)
class AlignedAverage(Average):
    """Weighted merging of M-SMoE (arXiv 2310.01334) with its alignment: a one-to-one matching by linear assignment.

    Neurons match by the mean cosine of their parts, as the signal `aligned` compares them. Weights are by REAP's
    saliency, as in REAM, where the evidence knows it, else by how often each is chosen, else equal. Groups are those of
    `average`. An expert that is the kept one with its neurons in another order leaves it as it is. Needs scipy (extra
    `aligned`).
    """

    name: ClassVar[str] = "aligned-average"
    weighs: ClassVar[tuple[str, ...]] = ("reap", "frequency")
    weights: ClassVar[str] = (
        "Where experts were removed, those that are left are weighted averages of themselves and of removed ones, "
        "neuron by neuron as they match best (`edit` in plan.json); all other weights are those of the source, bit for "
        "bit."
    )

    def blends(self, groups: Mapping[int, Group], read: ReadNeurons) -> Mapping[int, Blend]:
        return {expert: _matched(expert, group, read) for expert, group in groups.items()}


def _matched(expert: int, group: Group, read: ReadNeurons) -> Blend:
    """Every neuron of a kept expert as a sum of one neuron of each member."""
    own = unit_neurons([*read(expert).values()])
    each = np.arange(len(own))
    blend = {}
    for member, weight in group:
        partner = each if member == expert else matching(own, unit_neurons([*read(member).values()]))[0]
        blend[member] = Terms(neurons=partner, made=each, shares=np.full(len(own), weight, np.float64))
    return blend


EDIT: Edit = AlignedAverage()
