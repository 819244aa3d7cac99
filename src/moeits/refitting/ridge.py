"""Ridge regression of the kept experts' down projections on what the layer gave before.

    min over D of  sum_t s_t || y_t - sum_e g_te D_e h_te ||^2  +  lambda sum_e || D_e - D_e0 ||^2

with h_te what expert e has before its down projection and g_te the gate of the pruned model's own router, zero where e
was not chosen; lambda = r * the mean diagonal of the weighted features' Gram matrix. Where all kept experts together
have few features, or there are fewer tokens than features, it is solved at once; otherwise block by block, one Cholesky
factor of the width of an expert for each, in Gauss-Seidel sweeps over the experts until the gradient is gone.
Matrices are kept transposed here, (I, H), as features are multiplied from the left.
"""

from collections.abc import Mapping, Sequence

import torch

from moeits.refitting.features import ROWS, ExpertFeatures

# The sweeps end when the gradient has fallen to this share of what it was at the old weights.
_STILL = 3e-5
_MOST_SWEEPS = 60
# Up to so many features of all kept experts together the normal equations are solved as they are.
_MOST_JOINT = 6144
# Up to so many tokens, if they are fewer than the features, their products are solved as they are: 2 GiB at most.
_MOST_TOKENS = 16384
_GRID = tuple(float(f"{mantissa}e{power}") for power in range(4, -7, -1) for mantissa in (3, 1))


class RidgeTooSmall(ArithmeticError):
    """The ridge is lost in the rounding of a Gram matrix of lower rank, such as of text that repeats itself."""


class LayerProblem:
    """One layer's regression: features, and several targets at once, each (T, H).

    `weights` (I, targets x H) of each expert are the solution of the last `solve`, at first the old ones.
    """

    def __init__(
        self,
        features: ExpertFeatures,
        start: Mapping[int, torch.Tensor],
        targets: Sequence[torch.Tensor],
        weight: torch.Tensor,
        *,
        most_joint: int = _MOST_JOINT,
    ) -> None:
        self.features = features
        self.start = {e: torch.cat([d] * len(targets), dim=1) for e, d in start.items()}
        self.width = next(iter(start.values())).shape[1]
        self.weights = dict(self.start)
        self.residual = torch.cat(list(targets), dim=1) * weight.sqrt()[:, None]
        for e in self.start:
            if (bias := features.bias(e)) is not None:
                self.residual.index_add_(0, bias[0], torch.cat([-bias[1]] * len(targets), dim=1))
        for e, d in start.items():
            tokens, phi = features.of(e)
            self.residual.index_add_(0, tokens, (phi @ d).repeat(1, len(targets)), alpha=-1)
        entries = sum(d.shape[0] for d in start.values())
        self.mean_diagonal = self._sum_of_squares() / entries
        self._first = self.gradient_norm(1.0)  # nothing has moved, so no ridge pulls
        self._solver = self._suited(entries, most_joint)(self)

    def _suited(self, entries: int, most_joint: int) -> "type[_Joint] | type[_ByTokens] | type[_Blocks]":
        """By numbers of features and tokens alone: what comes out must not depend on a machine's memory."""
        if entries <= most_joint:
            return _Joint
        return _ByTokens if len(self.residual) <= min(entries, _MOST_TOKENS) else _Blocks

    def _sum_of_squares(self) -> float:
        return sum(float(self.features.of(e)[1].square().sum(dtype=torch.float64)) for e in self.start)

    def solve(self, ridge: float) -> int:
        """Bring `weights` to the solution for r = `ridge`; gives the number of sweeps over the experts.

        Raises RidgeTooSmall, with all weights as they were.
        """
        return self._solver.solve(ridge * self.mean_diagonal, _STILL * self._first)

    def gradient(self, expert: int, strength: float) -> torch.Tensor:
        """Minus half the gradient of the objective by one expert's weights, (I, targets x H)."""
        tokens, phi = self.features.of(expert)
        pull = strength * (self.weights[expert] - self.start[expert])
        return phi.T @ self.residual[tokens] - pull

    def move(self, expert: int, step: torch.Tensor) -> None:
        """Add to the weights of one expert, and take what that gives from what is left."""
        tokens, phi = self.features.of(expert)
        self.weights[expert] = self.weights[expert] + step
        self.residual.index_add_(0, tokens, phi @ step, alpha=-1)

    def gradient_norm(self, ridge: float) -> float:
        """Half the norm of the objective's gradient at `weights`."""
        strength = ridge * self.mean_diagonal
        squares = (self.gradient(e, strength).square().sum(dtype=torch.float64) for e in self.start)
        return float(sum(squares)) ** 0.5

    def mixed(self, share: float) -> dict[int, torch.Tensor]:
        """The weights for (1 - share) of the first target and share of the second: the solution is linear in them."""
        h = self.width
        return {e: (1 - share) * w[:, :h] + share * w[:, h:] for e, w in self.weights.items()}


class _Blocks:
    """Gauss-Seidel over the experts: as large a matrix as one expert is wide, however many there are.

    Factors of float32 do, as each step is one of what is left over.
    """

    def __init__(self, problem: LayerProblem) -> None:
        self._problem = problem
        self._grams: dict[int, torch.Tensor] = {}

    def solve(self, strength: float, still: float) -> int:
        problem = self._problem
        factors = {e: _factor(self._gram(e), strength) for e in problem.start}
        sweeps, left = 0, float("inf")
        while left > still and sweeps < _MOST_SWEEPS:
            sweeps, squares = sweeps + 1, 0.0
            for e in problem.start:
                gradient = problem.gradient(e, strength)
                squares += float(gradient.square().sum(dtype=torch.float64))
                problem.move(e, torch.cholesky_solve(gradient, factors[e]))
            left = squares**0.5
        return sweeps

    def _gram(self, expert: int) -> torch.Tensor:
        if expert not in self._grams:
            _, phi = self._problem.features.of(expert)
            self._grams[expert] = phi.T @ phi
        return self._grams[expert]


class _ByTokens:
    """All experts at once from the products of tokens, (T, T): for fewer tokens than features.

    Whatever moves the weights is phi' times something, so they are start + phi' alpha with alpha (T, targets x H), and
    (K + lambda) alpha is what the old weights leave. A sweep solves for what is left of that in float32.
    """

    def __init__(self, problem: LayerProblem) -> None:
        self._problem = problem
        self._products = torch.zeros(len(problem.residual), len(problem.residual))
        for e in problem.start:
            tokens, phi = problem.features.of(e)
            at = tokens[:, None], tokens[None]
            self._products[at] = self._products[at] + phi @ phi.T
        self._alpha = torch.zeros_like(problem.residual)

    def solve(self, strength: float, still: float) -> int:
        factor, sweeps = _factor(self._products, strength), 0
        while sweeps < _MOST_SWEEPS:
            left = self._problem.residual - strength * self._alpha
            # The gradient is phi' left.
            if float((left * (self._products @ left)).sum(dtype=torch.float64)) <= still**2:
                break
            more, sweeps = torch.cholesky_solve(left, factor), sweeps + 1
            self._alpha += more
            self._problem.residual -= self._products @ more
        for e, start in self._problem.start.items():
            tokens, phi = self._problem.features.of(e)
            self._problem.weights[e] = start + phi.T @ self._alpha[tokens]
        return sweeps


class _Joint:
    """All experts at once, where their features together are few: one Gram matrix, a factor for each ridge."""

    def __init__(self, problem: LayerProblem) -> None:
        self._problem = problem
        edges = [0]
        for d in problem.start.values():
            edges.append(edges[-1] + d.shape[0])
        self._rows = {e: slice(*edges[n : n + 2]) for n, e in enumerate(problem.start)}
        self._gram = torch.zeros(edges[-1], edges[-1], dtype=torch.float64)
        self._to_target = torch.zeros(edges[-1], problem.residual.shape[1], dtype=torch.float64)
        for begin in range(0, len(problem.residual), ROWS // 4):
            self._take(begin, begin + ROWS // 4)
        self._old = torch.cat(list(problem.start.values())).double()

    def _take(self, begin: int, end: int) -> None:
        left = self._problem.residual[begin:end]
        dense = torch.zeros(len(left), len(self._gram))
        for e, rows in self._rows.items():
            tokens, phi = self._problem.features.of(e)
            some = slice(*torch.searchsorted(tokens, torch.tensor([begin, end])).tolist())
            dense[tokens[some] - begin, rows] = phi[some]
        self._gram += (dense.T @ dense).double()
        self._to_target += (dense.T @ left).double()

    def solve(self, strength: float, still: float) -> int:  # noqa: ARG002 - it is exact
        # `_to_target` is of the residual at the old weights, so this is how far they move from there.
        moved = torch.cholesky_solve(self._to_target, _factor(self._gram, strength))
        for e, rows in self._rows.items():
            problem = self._problem
            problem.move(e, (self._old[rows] + moved[rows]).float() - problem.weights[e])
        return 1


def _factor(gram: torch.Tensor, strength: float) -> torch.Tensor:
    ridged = gram.clone()
    ridged.diagonal().add_(strength if strength > 0 else 1.0)
    factor, wrong = torch.linalg.cholesky_ex(ridged)
    if wrong:
        raise RidgeTooSmall
    return factor


def predicted(
    features: ExpertFeatures, weights: Mapping[int, torch.Tensor], like: torch.Tensor, *, onto: bool = False
) -> torch.Tensor:
    """Root s times what the routed experts give with these down projections; as `like`, or added to it."""
    out = like.clone() if onto else torch.zeros_like(like)
    for e, d in weights.items():
        tokens, phi = features.of(e)
        out.index_add_(0, tokens, phi @ d)
        if (bias := features.bias(e)) is not None:
            out.index_add_(0, bias[0], bias[1].repeat(1, out.shape[1] // bias[1].shape[1]))
    return out


def grid(largest: float) -> tuple[float, ...]:
    """r from large to small, in steps of about three."""
    return tuple(r for r in _GRID if r <= largest) or (largest,)
