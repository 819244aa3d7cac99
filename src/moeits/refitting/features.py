"""What the routed experts of one layer hand to their down projections: the features of the regression.

Matrices are kept transposed, (I, H), as features are multiplied from the left.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from moeits.calibration.activations import Activations
from moeits.refitting.down_tensors import SHARED
from moeits.refitting.memory import ROWS


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
    """phi_e = root s * g * h, (t, I), made from the stock experts when it is asked for, or held once it was.

    Those of the shared expert are divided by `shared_scale`, which is to be known before any is asked for.
    """

    def __init__(self, experts: Any, routed: Routed, room: Activations, *, shared_scale: float = 1.0) -> None:
        self.shared_scale = shared_scale
        self.routed, self._experts, self._room = routed, experts, room
        self._held: dict[int, torch.Tensor] = {}

    def tokens(self, expert: int) -> torch.Tensor:
        """(t,): which tokens are routed to an expert, ascending."""
        return self.routed.of(expert)[0]

    def hold(self, expert: int) -> torch.Tensor:
        """(t, I): all features of one expert, made once; on disk where there is no memory left for them."""
        if expert not in self._held:
            tokens, scale = self.routed.of(expert)
            self._held[expert] = self._fill(self._room.array(len(tokens), self._width(expert)), expert, tokens, scale)
        return self._held[expert]

    def parts(self, expert: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Tokens (r,) and features (r, I) of one expert, at most ROWS at a time; held if there is memory left."""
        tokens, scale = self.routed.of(expert)
        if expert not in self._held and self._room.take(len(tokens) * self._width(expert) * 4):
            self._held[expert] = self._fill(torch.empty(len(tokens), self._width(expert)), expert, tokens, scale)
        for rows in runs(len(tokens)):
            held = self._held.get(expert)
            yield tokens[rows], self._made(expert, tokens[rows], scale[rows]) if held is None else held[rows]

    def between(self, expert: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (r,) and features (r, I) of one expert, of those tokens that are in a range."""
        tokens, scale = self.routed.of(expert)
        some = slice(*torch.searchsorted(tokens, torch.tensor([rows.start, rows.stop])).tolist())
        held = self._held.get(expert)
        return tokens[some], self._made(expert, tokens[some], scale[some]) if held is None else held[some]

    def bias(self, expert: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Tokens and what the bias of the down projection gives at them, (r, H); nothing where there is none."""
        if expert == SHARED or not getattr(self._experts, "has_bias", False):
            return
        tokens, scale = self.routed.of(expert)
        for rows in runs(len(tokens)):
            yield tokens[rows], scale[rows, None] * self._experts.down_proj_bias[expert].cpu()

    def _width(self, expert: int) -> int:
        if expert == SHARED:
            assert self.routed.shared is not None
            return self.routed.shared.shape[1]
        return down_of(self._experts, expert).shape[0]

    def _fill(self, into: torch.Tensor, expert: int, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        for rows in runs(len(tokens)):
            into[rows] = self._made(expert, tokens[rows], scale[rows])
        return into

    def _made(self, expert: int, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if expert == SHARED:
            assert self.routed.shared is not None
            return self.routed.shared[tokens] * (scale / self.shared_scale)[:, None]
        hidden = self.routed.hidden[tokens].to(self._experts.down_proj.device)
        return before_down(self._experts, expert, hidden).cpu().mul_(scale[:, None])


def runs(count: int) -> Iterator[slice]:
    """At most ROWS of so many rows at a time."""
    for begin in range(0, count, ROWS):
        yield slice(begin, min(begin + ROWS, count))


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
