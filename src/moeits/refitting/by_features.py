"""The regression solved by the Gram matrices of features: of all experts at once, or of one after the other."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from moeits.calibration.activations import Activations
from moeits.refitting.features import ExpertFeatures, runs
from moeits.refitting.memory import BLOCK
from moeits.refitting.ridge import LayerProblem
from moeits.refitting.symmetric import Symmetric

# The sweeps end when the gradient has fallen to this share of what it was at the old weights.
_STILL = 3e-5
_MOST_SWEEPS = 60


class _ByFeatures(ABC):
    """Has how far the weights have moved, (I, targets x H) of each expert."""

    def __init__(self, problem: LayerProblem, others: ExpertFeatures, room: Activations) -> None:
        self._problem, self._others = problem, others
        columns = problem.residual.shape[1]
        self._steps = {e: room.array(len(d), columns) for e, d in problem.start.items()}
        self._best = {e: room.array(*d.shape) for e, d in problem.start.items()}
        self.moved = room.array(len(others.routed.hidden), columns)
        """(T of the others, targets x H): root s times how far their outputs move, by the last `solve`."""

    @abstractmethod
    def solve(self, strength: float) -> tuple[int, bool]:
        """Sweeps, and whether they came to rest; `moved` is then of this strength. Raises RidgeTooSmall."""

    def _move_others(self) -> None:
        self.moved.zero_()
        for e, step in self._steps.items():
            for tokens, phi in self._others.parts(e):
                self.moved.index_add_(0, tokens, phi @ step)

    def keep(self, share: float) -> None:
        """What was solved last is the best so far, with this share of the second target."""
        for e, step in self._steps.items():
            for rows in runs(len(step)):
                self._best[e][rows] = self._problem.mixed(step[rows], share)

    def weights(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Expert and its weights (I, H), of what was kept."""
        for e, start in self._problem.start.items():
            yield e, start + self._best[e]


class Blocks(_ByFeatures):
    """Gauss-Seidel over the experts: as large a matrix as one expert is wide, however many there are.

    Factors of float32 do, as each step is one of what is left over.
    """

    def __init__(self, problem: LayerProblem, others: ExpertFeatures, room: Activations) -> None:
        super().__init__(problem, others, room)
        self._grams = {e: Symmetric(len(d), room) for e, d in problem.start.items()}
        problem.begin()
        for e, gram in self._grams.items():
            for _, phi in problem.features.parts(e):
                _add_products(gram.square, phi)
            gram.seal()
        # Nothing has moved, so no ridge pulls.
        self._first = sum(_squares(self._gradient(e, 0.0)) for e in problem.start) ** 0.5

    def _gradient(self, expert: int, strength: float) -> torch.Tensor:
        """Minus half the gradient of the objective by one expert's weights, (I, targets x H)."""
        gradient = self._steps[expert] * -strength
        for tokens, phi in self._problem.features.parts(expert):
            gradient.addmm_(phi.T, self._problem.residual[tokens])
        return gradient

    def solve(self, strength: float) -> tuple[int, bool]:
        for gram in self._grams.values():
            gram.factor(strength)
        sweeps, left = 0, float("inf")
        while left > _STILL * self._first and sweeps < _MOST_SWEEPS:
            sweeps, squares = sweeps + 1, 0.0
            for e, gram in self._grams.items():
                step = self._gradient(e, strength)
                squares += _squares(step)
                self._move(e, gram.solve(step))
            left = squares**0.5
        self._move_others()
        return sweeps, left <= _STILL * self._first

    def _move(self, expert: int, step: torch.Tensor) -> None:
        """Add to the weights of one expert, and take what that gives from what is left."""
        self._steps[expert] += step
        for tokens, phi in self._problem.features.parts(expert):
            self._problem.residual.index_add_(0, tokens, phi @ step, alpha=-1)


class AtOnce(_ByFeatures):
    """One Gram matrix of all experts' features, where they are few, in float64."""

    def __init__(self, problem: LayerProblem, others: ExpertFeatures, room: Activations) -> None:
        super().__init__(problem, others, room)
        self._gram = Symmetric(problem.entries, room, dtype=torch.float64)
        self._to_target = room.array(problem.entries, problem.residual.shape[1], dtype=torch.float64)
        self._moved = room.array(*self._to_target.shape, dtype=torch.float64)
        problem.begin()
        for rows in runs(problem.tokens):
            dense, left = self._dense(rows), problem.residual[rows]
            _add_products(self._gram.square, dense)
            for some in runs(problem.entries):
                self._to_target[some] += dense[:, some].T @ left
        self._gram.seal()

    def _dense(self, rows: slice) -> torch.Tensor:
        """(r, entries): features of all experts side by side, zero where a token is not routed to one."""
        dense, edge = torch.zeros(rows.stop - rows.start, self._problem.entries), 0
        for e, d in self._problem.start.items():
            tokens, phi = self._problem.features.between(e, rows)
            dense[tokens - rows.start, edge : edge + len(d)] = phi
            edge += len(d)
        return dense

    def solve(self, strength: float) -> tuple[int, bool]:
        self._gram.factor(strength)
        moved, edge = self._gram.solve(self._moved.copy_(self._to_target)), 0
        for step in self._steps.values():
            step.copy_(moved[edge : edge + len(step)])
            edge += len(step)
        self._move_others()
        return 1, True


def _squares(x: torch.Tensor) -> float:
    return sum(float(x[rows].square().sum(dtype=torch.float64)) for rows in runs(len(x)))


def _add_products(square: torch.Tensor, phi: torch.Tensor) -> None:
    """Add phi' phi to the upper triangle."""
    for begin in range(0, phi.shape[1], BLOCK):
        own = phi[:, begin : begin + BLOCK].T @ phi[:, begin:]
        square[begin : begin + BLOCK, begin:] += own
