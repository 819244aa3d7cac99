"""A symmetric matrix of products and its Cholesky factor, in one square that may be on disk."""

from collections.abc import Iterator

import torch

from moeits.calibration.activations import Activations
from moeits.refitting.memory import BLOCK


class RidgeTooSmall(ArithmeticError):
    """The ridge is lost in the rounding of a matrix of lower rank, such as of text that repeats itself."""


class Symmetric:
    """An (n, n) matrix of products, to which strengths are added before it is factored.

    Above the diagonal blocks lies the matrix, in and below them the factor; the matrix's own diagonal blocks lie apart.
    So a matrix and a factor take the room of one, and no block of them is larger than (n, BLOCK).
    """

    def __init__(self, size: int, room: Activations, *, dtype: torch.dtype = torch.float32) -> None:
        self.square = room.array(size, size, dtype=dtype)
        """Its upper triangle is to be filled, and then `seal` to be called."""
        self._diagonal = room.array(size, min(size, BLOCK), dtype=dtype)
        self._strength = 0.0

    def seal(self) -> None:
        """The upper triangle is complete."""
        for own, _ in self._blocks():
            block = self.square[own, own].triu()
            self._diagonal[own, : block.shape[1]] = block + block.triu(1).T

    def factor(self, strength: float) -> None:
        """Factor the matrix with `strength` added to its diagonal, 1 for a strength of 0. Raises RidgeTooSmall."""
        a, self._strength = self.square, strength or 1.0
        for own, after in self._blocks():
            before = slice(0, own.start)
            panel = torch.cat([self._own(own), a[own, after].T])
            panel.diagonal().add_(self._strength)
            panel.addmm_(a[own.start :, before], a[own, before].T, alpha=-1)
            top = panel[: own.stop - own.start]
            root, wrong = torch.linalg.cholesky_ex(top)
            if wrong:
                raise RidgeTooSmall
            a[own, own] = root
            a[after, own] = torch.linalg.solve_triangular(root.T, panel[len(top) :], upper=True, left=False)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """(A + strength)^-1 x of the last `factor`, (n, columns), in the place of x."""
        a = self.square
        for own, _ in self._blocks():
            x[own].addmm_(a[own, : own.start], x[: own.start], alpha=-1)
            x[own] = torch.linalg.solve_triangular(a[own, own], x[own], upper=False)
        for own, after in reversed(list(self._blocks())):
            x[own].addmm_(a[after, own].T, x[after], alpha=-1)
            x[own] = torch.linalg.solve_triangular(a[own, own].T, x[own], upper=True)
        return x

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """A x, without the strength."""
        out = torch.empty_like(x)
        for own, after in self._blocks():
            out[own] = self._own(own) @ x[own]
            out[own].addmm_(self.square[own, after], x[after])
            out[own].addmm_(self.square[: own.start, own].T, x[: own.start])
        return out

    def left_of(self, wanted: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """wanted - (A + strength) x."""
        return wanted - self.times(x) - self._strength * x

    def _own(self, block: slice) -> torch.Tensor:
        return self._diagonal[block, : block.stop - block.start]

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """A block on the diagonal, and all that comes after it."""
        size = len(self.square)
        for begin in range(0, size, BLOCK):
            end = min(begin + BLOCK, size)
            yield slice(begin, end), slice(end, size)
