"""Ridge regression of the kept experts' down projections on what the layer gave before.

    min over D of  sum_t s_t || y_t - sum_e g_te D_e h_te ||^2  +  lambda sum_e || D_e - D_e0 ||^2

with h_te what expert e has before its down projection and g_te the gate of the pruned model's own router, zero where e
was not chosen; lambda = r * the mean diagonal of the weighted features' Gram matrix. It is solved block by block: one
Cholesky factor of the width of an expert for each, Gauss-Seidel sweeps over the experts until the gradient is gone.
Matrices are kept transposed here, (I, H), as features are multiplied from the left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# The sweeps end when the gradient has fallen to this share of what it was at the old weights.
_STILL = 3e-5
_MOST_SWEEPS = 60
_GRID = tuple(float(f"{mantissa}e{power}") for power in range(4, -7, -1) for mantissa in (3, 1))
# Rows of features made at once.
_ROWS = 16384


@dataclass(frozen=True, kw_only=True)
class Routed:
    """What the routed experts of one layer get, for T tokens."""

    hidden: torch.Tensor
    """(T, H)"""
    chosen: torch.Tensor
    """(T, k)"""
    gates: torch.Tensor
    """(T, k)"""
    weight: torch.Tensor
    """(T,): s_t, by which the squared error of a token counts."""

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens are routed to an expert, and its gate times the root of their weight."""
        tokens, slot = torch.where(self.chosen == expert)
        return tokens, self.gates[tokens, slot].float() * self.weight[tokens].sqrt()


class ExpertFeatures:
    """phi_e = root s * g * h, made from the stock experts when it is asked for, and held while the memory lasts."""

    def __init__(self, experts: Any, routed: Routed, *, most_bytes: int) -> None:
        self._experts, self._routed, self._left = experts, routed, most_bytes
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (t,) and features (t, I) of one expert."""
        if expert in self._held:
            return self._held[expert]
        tokens, scale = self._routed.of(expert)
        parts = [
            before_down(self._experts, expert, self._routed.hidden[some]) * own[:, None]
            for some, own in zip(tokens.split(_ROWS), scale.split(_ROWS), strict=True)
        ]
        features = torch.cat(parts)
        if (nbytes := features.numel() * 4) <= self._left:
            self._left -= nbytes
            self._held[expert] = tokens, features
        return tokens, features

    def bias(self, expert: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Tokens and what the bias of the down projection gives at them, (t, H); None where there is none."""
        if not getattr(self._experts, "has_bias", False):
            return None
        tokens, scale = self._routed.of(expert)
        return tokens, scale[:, None] * self._experts.down_proj_bias[expert]


def before_down(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """(t, I): what an expert of a stock class hands to its down projection."""
    weight = experts.gate_up_proj[expert]
    wide = hidden @ (weight if experts.is_transposed else weight.T)
    if experts.has_bias:
        wide = wide + experts.gate_up_proj_bias[expert]
    return torch.as_tensor(experts._apply_gate(wide))


def down_of(experts: Any, expert: int) -> torch.Tensor:
    """(I, H): the down projection of one expert of a stock class."""
    weight = experts.down_proj[expert]
    return torch.as_tensor(weight if experts.is_transposed else weight.T)


class LayerProblem:
    """One layer's regression: features, and several targets at once, each (T, H)."""

    def __init__(
        self,
        features: ExpertFeatures,
        start: Mapping[int, torch.Tensor],
        targets: Sequence[torch.Tensor],
        weight: torch.Tensor,
    ) -> None:
        self.features = features
        self.start = {e: torch.cat([d] * len(targets), dim=1) for e, d in start.items()}
        self.width = next(iter(start.values())).shape[1]
        self.weights = dict(self.start)
        self._grams: dict[int, torch.Tensor] = {}
        self.residual = torch.cat(list(targets), dim=1) * weight.sqrt()[:, None]
        for e in self.start:
            if (bias := features.bias(e)) is not None:
                self.residual.index_add_(0, bias[0], torch.cat([-bias[1]] * len(targets), dim=1))
        for e, d in self.start.items():
            tokens, phi = features.of(e)
            self.residual.index_add_(0, tokens, phi @ d, alpha=-1)
        self.mean_diagonal = self._mean_diagonal()

    def _mean_diagonal(self) -> float:
        total, count = 0.0, 0
        for e, d in self.start.items():
            total += float(self.features.of(e)[1].square().sum(dtype=torch.float64))
            count += d.shape[0]
        return total / count

    def gram(self, expert: int) -> torch.Tensor:
        """(I, I) float64."""
        if expert not in self._grams:
            _, phi = self.features.of(expert)
            self._grams[expert] = (phi.T @ phi).double()
        return self._grams[expert]

    def solve(self, ridge: float) -> int:
        """Bring `weights` to the solution for r = `ridge`, from where they are; gives the number of sweeps."""
        strength = ridge * self.mean_diagonal
        factors = {e: _factor(self.gram(e), strength) for e in self.start}
        first = self.gradient_norm(ridge, at_start=True)
        sweeps, left = 0, float("inf")
        while left > _STILL * first and sweeps < _MOST_SWEEPS:
            sweeps, squares = sweeps + 1, 0.0
            for e in self.start:
                tokens, phi = self.features.of(e)
                gradient = (phi.T @ self.residual[tokens]).double() - strength * (self.weights[e] - self.start[e])
                squares += float(gradient.square().sum())
                step = torch.cholesky_solve(gradient, factors[e]).float()
                self.weights[e] = self.weights[e] + step
                self.residual.index_add_(0, tokens, phi @ step, alpha=-1)
            left = squares**0.5
        return sweeps

    def gradient_norm(self, ridge: float, *, at_start: bool = False) -> float:
        """Half the norm of the objective's gradient, here or at the old weights."""
        if at_start:
            if not hasattr(self, "_first"):
                self._first = self.gradient_norm(ridge)  # nothing has moved yet, so the ridge pulls at nothing
            return self._first
        strength, total = ridge * self.mean_diagonal, 0.0
        for e in self.start:
            tokens, phi = self.features.of(e)
            gradient = phi.T @ self.residual[tokens] - strength * (self.weights[e] - self.start[e])
            total += float(gradient.square().sum(dtype=torch.float64))
        return total**0.5

    def mixed(self, share: float) -> dict[int, torch.Tensor]:
        """The weights for (1 - share) of the first target and share of the second: the solution is linear in them."""
        h = self.width
        return {e: (1 - share) * w[:, :h] + share * w[:, h:] for e, w in self.weights.items()}


def _factor(gram: torch.Tensor, strength: float) -> torch.Tensor:
    ridged = gram.clone()
    ridged.diagonal().add_(strength if strength > 0 else 1.0)
    return torch.linalg.cholesky(ridged)


def predicted(features: ExpertFeatures, weights: Mapping[int, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Root s times what the routed experts give with these down projections; as `like`, (T, H)."""
    out = torch.zeros_like(like)
    for e, d in weights.items():
        tokens, phi = features.of(e)
        out.index_add_(0, tokens, phi @ d)
        if (bias := features.bias(e)) is not None:
            out.index_add_(0, *bias)
    return out


def grid(largest: float) -> tuple[float, ...]:
    """r from large to small, in steps of about three."""
    return tuple(r for r in _GRID if r <= largest) or (largest,)
