"""Ridge regression of the kept experts' down projections on what the layer gave before.

    min over D of  sum_t s_t || y_t - sum_e g_te D_e h_te ||^2  +  lambda sum_e || D_e - D_e0 ||^2

with h_te what expert e has before its down projection and g_te the gate of the pruned model's own router, zero where e
was not chosen; lambda = r * the mean diagonal of the weighted features' Gram matrix. What is solved for is how far the
weights move from the old ones, of all targets at once, (I, targets x H) each: matrices are kept transposed here, as
features are multiplied from the left. All that is large lies in a room, in memory or on disk; what comes out does not
depend on which.
"""

from collections.abc import Mapping, Sequence

import torch

from moeits.calibration.activations import Activations
from moeits.refitting.features import ExpertFeatures, runs

_GRID = tuple(float(f"{mantissa}e{power}") for power in range(4, -7, -1) for mantissa in (3, 1))


class LayerProblem:
    """One layer's regression: features, old weights and several targets, each (T, H)."""

    def __init__(
        self,
        features: ExpertFeatures,
        start: Mapping[int, torch.Tensor],
        targets: Sequence[torch.Tensor],
        room: Activations,
    ) -> None:
        self.features, self.start, self._targets = features, start, targets
        self.tokens, self.width = targets[0].shape
        self.entries = sum(d.shape[0] for d in start.values())
        self.residual = room.array(self.tokens, len(targets) * self.width)
        """(T, targets x H): root s times what is left of the targets; of the old weights once `begin` was called."""
        self.mean_diagonal = 0.0

    def begin(self) -> None:
        """Take what the old weights give from the targets."""
        root, count, squares = self.features.routed.weight.sqrt(), len(self._targets), 0.0
        for rows in runs(self.tokens):
            self.residual[rows] = torch.cat([each[rows] for each in self._targets], 1) * root[rows, None]
        for e, d in self.start.items():
            for tokens, given in self.features.bias(e):
                self.residual.index_add_(0, tokens, given.repeat(1, count), alpha=-1)
            for tokens, phi in self.features.parts(e):
                self.residual.index_add_(0, tokens, (phi @ d).repeat(1, count), alpha=-1)
                squares += float(phi.square().sum(dtype=torch.float64))
        self.mean_diagonal = squares / self.entries

    def mixed(self, moved: torch.Tensor, share: float) -> torch.Tensor:
        """(n, targets x H) -> (n, H): (1 - share) of the first target and share of the second."""
        first, second = moved[:, : self.width], moved[:, -self.width :]
        return first.lerp(second, share)


def predicted(
    features: ExpertFeatures, weights: Mapping[int, torch.Tensor], out: torch.Tensor, *, sign: int = 1
) -> torch.Tensor:
    """Add to `out` (T, H), or take from it, root s times what the routed experts give with these down projections."""
    for e, d in weights.items():
        for tokens, phi in features.parts(e):
            out.index_add_(0, tokens, phi @ d, alpha=sign)
        for tokens, given in features.bias(e):
            out.index_add_(0, tokens, given, alpha=sign)
    return out


def grid(largest: float, smallest: float = 0.0) -> tuple[float, ...]:
    """r from large to small, in steps of about three."""
    return tuple(r for r in _GRID if smallest <= r <= largest) or (largest,)
