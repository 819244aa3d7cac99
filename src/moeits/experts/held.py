"""What of an expert is in one of its tensors, as views that can be read and written."""

from dataclasses import dataclass

import numpy as np

from moeits.experts.stored import Place, Stacking


@dataclass(frozen=True, kw_only=True)
class Held:
    """The projections of one expert that a tensor of numbers holds, one or several stacked."""

    projections: tuple[str, ...]
    bias: bool
    """Whether it is their biases and not their weights."""
    stacking: Stacking

    def of(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """Projection -> its matrix, (outputs, inputs), or its bias, (outputs,), of what an expert has of the tensor."""
        whole = stored.T if self.stacking.endswith("columns") else stored
        places = (
            Place(expert=0, at=at, of=len(self.projections), stacking=self.stacking)
            for at in range(len(self.projections))
        )
        return {name: place.cut(whole) for name, place in zip(self.projections, places, strict=True)}

    def neurons(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """The same with the neurons on the first axis, (I, H) or (I,); the bias of a down projection is of none."""
        found = self.of(stored)
        if self.bias:
            return {name: bias for name, bias in found.items() if name != "down"}
        return {name: by_neuron(name, matrix) for name, matrix in found.items()}


def by_neuron(projection: str, matrix: np.ndarray) -> np.ndarray:
    """The weights of one projection, (outputs, inputs), with a row for each neuron of the expert."""
    return matrix.T if projection == "down" else matrix
