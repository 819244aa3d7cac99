"""What the routed experts of one layer hand to their down projections: the features of the regression.

Matrices are kept transposed, (I, H), as features are multiplied from the left.
"""

from dataclasses import dataclass
from typing import Any

import torch

from moeits.refitting.shared_tensor import SHARED

# Rows of features made at once.
ROWS = 16384


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
    shared: torch.Tensor | None = None
    """(T, I): what the shared expert hands to its down projection, times its gate; None where it is not fitted."""

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens are routed to an expert, and its gate times the root of their weight."""
        if expert == SHARED:
            return torch.arange(len(self.weight)), self.weight.sqrt()
        tokens, slot = torch.where(self.chosen == expert)
        return tokens, self.gates[tokens, slot].float() * self.weight[tokens].sqrt()


class ExpertFeatures:
    """phi_e = root s * g * h, made from the stock experts when it is asked for, and held while the memory lasts.

    Those of the shared expert are divided by `shared_scale`.
    """

    def __init__(self, experts: Any, routed: Routed, *, most_bytes: int, shared_scale: float = 1.0) -> None:
        self.shared_scale = shared_scale
        self._experts, self._routed, self._left = experts, routed, most_bytes
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (t,) and features (t, I) of one expert."""
        if expert in self._held:
            return self._held[expert]
        tokens, scale = self._routed.of(expert)
        parts = [
            self._before_down(expert, some) * own[:, None]
            for some, own in zip(tokens.split(ROWS), scale.split(ROWS), strict=True)
        ]
        features = torch.cat(parts)
        if (nbytes := features.numel() * 4) <= self._left:
            self._left -= nbytes
            self._held[expert] = tokens, features
        return tokens, features

    def _before_down(self, expert: int, tokens: torch.Tensor) -> torch.Tensor:
        if expert == SHARED:
            assert self._routed.shared is not None
            return self._routed.shared[tokens] / self.shared_scale
        return before_down(self._experts, expert, self._routed.hidden[tokens])

    def bias(self, expert: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Tokens and what the bias of the down projection gives at them, (t, H); None where there is none."""
        if expert == SHARED or not getattr(self._experts, "has_bias", False):
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
