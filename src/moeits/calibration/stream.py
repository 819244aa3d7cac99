"""The hidden states of all tokens on their way through a model's layers."""

from dataclasses import dataclass, field

import numpy as np
import torch

from moeits.calibration.activations import Activations, batches
from moeits.calibration.layered import Arguments, LayeredModel, LiveLayer


@dataclass
class Stream:
    """One model's hidden states on their way through the layers."""

    model: LayeredModel
    tokens: torch.Tensor
    hidden: torch.Tensor
    arguments: dict[int, list[Arguments]] = field(default_factory=dict)
    """Number of windows in a batch -> the other arguments of each layer."""

    @classmethod
    def begin(cls, model: LayeredModel, tokens: np.ndarray, room: Activations) -> "Stream":
        ids = torch.from_numpy(tokens)
        made = cls(model, ids, room.array(len(ids), ids.shape[1], model.hidden_size))
        for part in batches(*ids.shape):
            hidden, arguments = model.start(ids[part])
            made.hidden[part] = hidden.cpu()
            made.arguments.setdefault(len(hidden), arguments)
        return made

    def run(self, layer: LiveLayer, i: int, part: slice, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """A batch through layer `i`."""
        batch = (self.hidden if hidden is None else hidden)[part].to(self.model.device)
        if len(batch) not in self.arguments:
            self.arguments[len(batch)] = self.model.start(self.tokens[: len(batch)])[1]
        return layer.run(batch, self.arguments[len(batch)][i])

    def parts(self) -> list[slice]:
        return list(batches(*self.tokens.shape))
