"""The regression solved by the products of tokens, (T, T): for no more tokens than features.

Whatever moves the weights is phi' alpha, alpha (T, targets x H), with (K + lambda) alpha = R, K = phi phi' and R what
the old weights leave. Other tokens' outputs then move by K_o (K + lambda)^-1 R, K_o the products of their features with
those of the fit. So one Cholesky factor and a solution for the smaller of the two sides judge a ridge, and no weight is
made before the best one is known.
"""

from collections.abc import Iterator

import torch

from moeits.calibration.activations import Activations
from moeits.refitting.features import ExpertFeatures, runs
from moeits.refitting.memory import BLOCK
from moeits.refitting.ridge import LayerProblem
from moeits.refitting.symmetric import RidgeTooSmall, Symmetric

# A solution stands when the gradient has fallen to this share of what it was at the old weights.
_STILL = 3e-5
_MOST_SWEEPS = 20
# Columns by which it is told, equally spaced: rounding does not choose among them.
_SAMPLE = 64


class ByTokens:
    """All experts at once."""

    def __init__(self, problem: LayerProblem, others: ExpertFeatures, room: Activations) -> None:
        self._problem, self._room = problem, room
        tokens, targets = problem.residual.shape
        count = len(others.routed.hidden)
        self._products = Symmetric(tokens, room)
        self._to_others = room.array(count, tokens)
        self._solved = room.array(tokens, min(count, targets))
        self.moved = room.array(count, targets)
        """(T of the others, targets x H): root s times how far their outputs move, by the last `solve`."""
        self._kept = (0.0, 0.0)
        for e in problem.start:
            problem.features.hold(e)
        problem.begin()
        for e in problem.start:
            self._take(e, others)
        self._products.seal()

    def _take(self, expert: int, others: ExpertFeatures) -> None:
        """Add the products of one expert's features."""
        tokens, phi = self._problem.features.tokens(expert), self._problem.features.hold(expert)
        square = self._products.square
        for rows in runs(len(tokens)):
            # Tokens are ascending, so this is the upper triangle, and a corner of the lower one that nobody reads.
            at = tokens[rows, None], tokens[None, rows.start :]
            square[at] = square[at] + phi[rows] @ phi[rows.start :].T
        for some, theirs in others.parts(expert):
            at = some[:, None], tokens[None]
            self._to_others[at] = self._to_others[at] + theirs @ phi.T

    def solve(self, strength: float) -> tuple[int, bool]:
        """Sweeps, and whether they came to rest; `moved` is then of this strength. Raises RidgeTooSmall."""
        self._products.factor(strength)
        residual = self._problem.residual
        if len(self.moved) < residual.shape[1]:
            told = self._bring(self._solved, self._to_others.T)
            torch.mm(self._solved.T, residual, out=self.moved)
        else:
            told = self._bring(self._solved, residual)
            torch.mm(self._to_others, self._solved, out=self.moved)
        self._strength = strength
        return told

    def _bring(self, x: torch.Tensor, wanted: torch.Tensor) -> tuple[int, bool]:
        """x <- (K + lambda)^-1 wanted in float32, and again of what that leaves: how often, and whether it is small."""
        self._products.solve(x.copy_(wanted))
        some = slice(None, None, -(-x.shape[1] // _SAMPLE))
        first, before = self._gradient(wanted[:, some]), float("inf")
        for sweeps in range(1, _MOST_SWEEPS + 1):
            left = self._gradient(self._products.left_of(wanted[:, some], x[:, some]))
            if left <= _STILL * first:
                return sweeps, True
            if not left < before / 2:
                break
            before = left
            for begin in range(0, x.shape[1], BLOCK):
                columns = slice(begin, begin + BLOCK)
                x[:, columns] += self._products.solve(self._products.left_of(wanted[:, columns], x[:, columns]))
        if not left < 1e-2 * first:
            raise RidgeTooSmall
        return sweeps, False

    def _gradient(self, left: torch.Tensor) -> float:
        """The norm of phi' left."""
        return float((left * self._products.times(left)).sum(dtype=torch.float64).clamp(min=0)) ** 0.5

    def keep(self, share: float) -> None:
        """What was solved last is the best so far, with this share of the second target."""
        self._kept = self._strength, share

    def weights(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Expert and its weights (I, H), of what was kept. Raises RidgeTooSmall, before the first of them."""
        problem, (strength, share) = self._problem, self._kept
        wanted = self._room.array(problem.tokens, problem.width)
        for rows in runs(problem.tokens):
            wanted[rows] = problem.mixed(problem.residual[rows], share)
        self._products.factor(strength)
        alpha = self._room.array(*wanted.shape)
        self._bring(alpha, wanted)
        for e, start in problem.start.items():
            made = start.clone()
            for tokens, phi in problem.features.parts(e):
                made.addmm_(phi.T, alpha[tokens])
            yield e, made
