"""Which way of solving one layer's regression suits it."""

from collections.abc import Iterator
from typing import Protocol

import torch

from moeits.calibration.activations import Activations
from moeits.refitting.by_features import AtOnce, Blocks
from moeits.refitting.by_tokens import ByTokens
from moeits.refitting.features import ExpertFeatures
from moeits.refitting.ridge import LayerProblem

# Up to so many features of all kept experts together the normal equations are solved as they are.
_MOST_AT_ONCE = 6144
# Up to so many tokens, if they are fewer than the features, their products are solved: 4 GiB at most.
_MOST_TOKENS = 32768


class Solver(Protocol):
    """Solves for one strength of the ridge after another, and keeps the best."""

    moved: torch.Tensor

    def solve(self, strength: float) -> tuple[int, bool]: ...

    def keep(self, share: float) -> None: ...

    def weights(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Expert and its weights (I, H), of what was kept. Raises RidgeTooSmall, before the first of them."""


def solver_for(
    problem: LayerProblem, others: ExpertFeatures, room: Activations, *, most_at_once: int = _MOST_AT_ONCE
) -> Solver:
    """By numbers of features and tokens alone: what comes out must not depend on a machine's memory."""
    if problem.entries <= most_at_once:
        return AtOnce(problem, others, room)
    if problem.tokens <= min(problem.entries, _MOST_TOKENS):
        return ByTokens(problem, others, room)
    return Blocks(problem, others, room)
