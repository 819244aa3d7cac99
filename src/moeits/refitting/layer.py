"""The refit of one layer: ridge and drift chosen on held-out tokens, old weights kept where nothing is gained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from moeits.calibration.activations import Activations
from moeits.refitting.down_tensors import SHARED
from moeits.refitting.features import ExpertFeatures, Routed, down_of, runs
from moeits.refitting.ridge import LayerProblem, grid, predicted
from moeits.refitting.solvers import Solver, solver_for
from moeits.refitting.symmetric import RidgeTooSmall

# After so many weaker ridges in a row without a gain on held-out tokens the search ends.
_PATIENCE = 3


@dataclass(frozen=True, kw_only=True)
class LayerData:
    """What a layer is fitted on or judged by: T tokens."""

    routed: Routed
    at_hand: torch.Tensor
    """(T, H): what all experts would give the routed part to do on the pruned model's own inputs."""
    back: torch.Tensor
    """(T, H): what brings the residual stream back to the unpruned model's."""
    source: torch.Tensor
    """(T,): the number of the source that each token is of."""


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """How it went. Errors are those of the routed part on held-out tokens, as a share of its target's square."""

    layer: int
    tokens: int
    experts: int
    ridge: float | None
    """None where the old weights stay."""
    drift: float | None
    error_before: float
    error_after: float
    sweeps: int
    """Of all ridges that were tried, over experts or of a refinement."""
    converged: bool
    """Whether each of them came to rest; if not, some were cut short, and their solution is only near."""
    unreached: tuple[int, ...]
    """Experts, by number in the pruned checkpoint, that no token reached: their weights stay."""
    shared: bool
    """Whether the shared expert was fitted too."""

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "unreached": list(self.unreached)}


def _search(
    solver: Solver, judge: "_HeldOut", unit: float, drifts: Sequence[float], ridges: Sequence[float]
) -> tuple[np.ndarray, float | None, float | None, int, bool]:
    """From the strongest ridge on, while held-out tokens gain: errors, their ridge and drift; sweeps, and whether all
    came to rest.

    Errors are those of each source, and what counts is the one that gains least: what helps one kind of text and harms
    another is not taken. `unit` is the strength of a ridge of 1.
    """
    best: tuple[np.ndarray, float | None, float | None] = (judge.before, None, None)
    least, sweeps, worse, converged = 1.0, 0, 0, True
    for ridge in ridges:
        try:
            more, rested = solver.solve(ridge * unit)
        except RidgeTooSmall:
            break
        sweeps, converged = sweeps + more, converged and rested
        left, share = min(judge.errors(solver.moved, drifts), key=lambda each: _worst(each[0], judge.before))
        if (worst := _worst(left, judge.before)) < least:
            best, least, worse = (left, ridge, share), worst, 0
            solver.keep(share)
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    return (*best, sweeps, converged)


def _worst(after: np.ndarray, before: np.ndarray) -> float:
    """What is left of the error in the source where most is left."""
    there = before > 0
    return float((after[there] / before[there]).max(initial=0.0 if there.any() else 1.0))


class _HeldOut:
    """Tokens that take no part in the fit, by which ridge and drift are chosen."""

    def __init__(
        self,
        data: LayerData,
        experts: Any,
        old: Mapping[int, torch.Tensor],
        room: Activations,
        *,
        shared_scale: float = 1.0,
    ) -> None:
        self._source = data.source
        self.features = ExpertFeatures(experts, data.routed, room, shared_scale=shared_scale)
        self._left = room.array(*data.back.shape)
        squares = 0.0
        for rows in runs(len(self._left)):
            self._left[rows] = data.back[rows] * data.routed.weight[rows, None].sqrt()
            squares += float(self._left[rows].square().sum(dtype=torch.float64))
        self._wanted = squares
        predicted(self.features, old, self._left, sign=-1)
        self.before = self.errors(torch.zeros(1, 1).expand(len(self._left), 2), (0.0,))[0][0]
        """Sums of squared errors with the old weights, by source."""

    def errors(self, moved: torch.Tensor, drifts: Sequence[float]) -> list[tuple[np.ndarray, float]]:
        """The same with weights that move outputs by `moved` (T, 2 H), for each drift."""
        sums = torch.zeros(len(drifts), int(self._source.max()) + 1, dtype=torch.float64)
        for rows in runs(len(self._left)):
            at_hand, back = moved[rows].chunk(2, dim=1)
            for own, share in zip(sums, drifts, strict=True):
                squares = (self._left[rows] - at_hand.lerp(back, share)).square().sum(1, dtype=torch.float64)
                own.index_add_(0, self._source[rows], squares)
        return [(own.numpy(), share) for own, share in zip(sums, drifts, strict=True)]

    def relative(self, errors: np.ndarray) -> float:
        """Of all sources together, as a share of the target's square."""
        return float(errors.sum() / (self._wanted or 1.0))


def refit_layer(
    layer: int,
    experts: Any,
    fit: LayerData,
    held_out: LayerData,
    *,
    drifts: Sequence[float],
    largest_ridge: float,
    smallest_ridge: float = 0.0,
    room: Activations,
    put: Callable[[int, torch.Tensor], None],
) -> LayerFit:
    """Find new down projections of the experts that tokens reached, and `put` each (I, H); none where the old stay.

    Of the shared expert, where there are features of it, what is to be added to its old one.
    """
    old = {e: down_of(experts, e).cpu() for e in range(experts.down_proj.shape[0])}
    reached = {e: d for e, d in old.items() if (fit.routed.chosen == e).any()}
    features = ExpertFeatures(experts, fit.routed, room)
    if fit.routed.shared is not None and reached:
        features.shared_scale = _shared_scale(features, reached, fit.routed)
        reached[SHARED] = torch.zeros(fit.routed.shared.shape[1], fit.at_hand.shape[1])
    problem = LayerProblem(features, reached, (fit.at_hand, fit.back), room)
    judge = _HeldOut(held_out, experts, old, room, shared_scale=features.shared_scale)
    solver = solver_for(problem, judge.features, room)
    ridges = grid(largest_ridge, smallest_ridge)
    after, ridge, drift, sweeps, converged = _search(solver, judge, problem.mean_diagonal, drifts, ridges)
    if ridge is not None and not _put_weights(solver, features.shared_scale, put):
        after, ridge, drift = judge.before, None, None
    return LayerFit(
        layer=layer,
        tokens=len(fit.routed.hidden),
        experts=len(old),
        ridge=ridge,
        drift=drift,
        error_before=judge.relative(judge.before),
        error_after=judge.relative(after),
        sweeps=sweeps,
        converged=converged,
        unreached=tuple(e for e in old if e not in reached),
        shared=SHARED in reached and ridge is not None,
    )


def _put_weights(solver: Solver, shared_scale: float, put: Callable[[int, torch.Tensor], None]) -> bool:
    """Whether there are weights of the best ridge; if not, none was `put`."""
    try:
        for expert, down in solver.weights():
            put(expert, down / shared_scale if expert == SHARED else down)
    except RidgeTooSmall:
        return False
    return True


def _shared_scale(features: ExpertFeatures, reached: Mapping[int, torch.Tensor], routed: Routed) -> float:
    """By which the shared expert's features are divided to be as large as the routed ones': so that a ridge binds both
    by the same share of their own mean diagonal."""
    assert routed.shared is not None
    squares = sum(_squares(phi) for e in reached for _, phi in features.parts(e))
    shared = ((routed.shared[rows], routed.weight[rows, None].sqrt()) for rows in runs(len(routed.weight)))
    own = sum(_squares(phi * root) for phi, root in shared) / routed.shared.shape[1]
    entries = sum(down.shape[0] for down in reached.values())
    return float(own / (squares / entries)) ** 0.5 if own > 0 and squares > 0 else 1.0


def _squares(x: torch.Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))
