"""The refit of one layer: ridge and drift chosen on held-out tokens, old weights kept where nothing is gained."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from moeits.refitting.features import ExpertFeatures, Routed, down_of
from moeits.refitting.ridge import LayerProblem, RidgeTooSmall, grid, predicted
from moeits.refitting.shared_tensor import SHARED

# After so many weaker ridges in a row without a gain on held-out tokens the search ends.
_PATIENCE = 2


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

    def by_source(self, left: torch.Tensor) -> np.ndarray:
        """Sums of squares of (T, H) over the tokens of each source."""
        sums = torch.zeros(int(self.source.max()) + 1, dtype=torch.float64)
        return sums.index_add_(0, self.source, left.square().sum(1, dtype=torch.float64)).numpy()


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
    unreached: tuple[int, ...]
    """Experts, by number in the pruned checkpoint, that no token reached: their weights stay."""
    shared: bool
    """Whether the shared expert was fitted too."""

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "unreached": list(self.unreached)}


def _search(
    problem: LayerProblem, judge: "_HeldOut", drifts: Sequence[float], largest_ridge: float
) -> tuple[np.ndarray, float | None, float | None, dict[int, torch.Tensor], int]:
    """From the strongest ridge on, while held-out tokens gain: errors, their ridge, drift and weights; sweeps.

    Errors are those of each source, and what counts is the one that gains least: what helps one kind of text and harms
    another is not taken.
    """
    best: tuple[np.ndarray, float | None, float | None, dict[int, torch.Tensor]] = (judge.before, None, None, {})
    least, sweeps, worse = 1.0, 0, 0
    for ridge in grid(largest_ridge):
        try:
            sweeps += problem.solve(ridge)
        except RidgeTooSmall:
            break
        left, share = min(judge.errors(problem, drifts), key=lambda each: _worst(each[0], judge.before))
        if (worst := _worst(left, judge.before)) < least:
            best, least, worse = (left, ridge, share, problem.mixed(share)), worst, 0
        else:
            worse += 1
            if worse > _PATIENCE:
                break
    return (*best, sweeps)


def _worst(after: np.ndarray, before: np.ndarray) -> float:
    """What is left of the error in the source where most is left."""
    there = before > 0
    return float((after[there] / before[there]).max(initial=0.0 if there.any() else 1.0))


class _HeldOut:
    """Tokens that take no part in the fit, by which ridge and drift are chosen."""

    def __init__(
        self, data: LayerData, experts: Any, *, reached: Collection[int], most_bytes: int, shared_scale: float = 1.0
    ) -> None:
        self._data = data
        self._features = ExpertFeatures(experts, data.routed, most_bytes=most_bytes, shared_scale=shared_scale)
        self._wanted = data.back * data.routed.weight.sqrt()[:, None]
        old = {e: down_of(experts, e) for e in range(experts.down_proj.shape[0])}
        self._still = predicted(self._features, {e: d for e, d in old.items() if e not in reached}, self._wanted)
        given = predicted(self._features, {e: old[e] for e in reached if e in old}, self._still, onto=True)
        self.before = data.by_source(self._wanted - given)
        """Sums of squared errors with the old weights, by source."""

    def errors(self, problem: LayerProblem, drifts: Sequence[float]) -> list[tuple[np.ndarray, float]]:
        """The same with the problem's weights, for each drift."""
        twice = torch.cat([self._still, self._still], 1)
        given = predicted(self._features, problem.weights, twice, onto=True)
        at_hand, back = given.chunk(2, dim=1)
        return [(self._data.by_source(self._wanted - at_hand.lerp(back, share)), share) for share in drifts]

    def relative(self, errors: np.ndarray) -> float:
        """Of all sources together, as a share of the target's square."""
        return float(errors.sum() / (self._wanted.square().sum(dtype=torch.float64).item() or 1.0))


def refit_layer(
    layer: int,
    experts: Any,
    fit: LayerData,
    held_out: LayerData,
    *,
    drifts: Sequence[float],
    largest_ridge: float,
    most_bytes: int,
) -> tuple[LayerFit, dict[int, torch.Tensor]]:
    """New down projections (I, H) of the experts that tokens reached; empty where the old ones stay.

    Of the shared expert, where there are features of it, what is to be added to its old one.
    """
    features = ExpertFeatures(experts, fit.routed, most_bytes=most_bytes)
    count = experts.down_proj.shape[0]
    reached = {e: down_of(experts, e) for e in range(count) if (fit.routed.chosen == e).any()}
    if fit.routed.shared is not None and reached:
        features.shared_scale = _shared_scale(features, reached, fit.routed)
        reached[SHARED] = torch.zeros(fit.routed.shared.shape[1], fit.at_hand.shape[1])
    scale = features.shared_scale
    judge = _HeldOut(held_out, experts, reached=reached, shared_scale=scale, most_bytes=most_bytes)
    problem = LayerProblem(features, reached, (fit.at_hand, fit.back), fit.routed.weight)
    after, chosen, drift, weights, sweeps = _search(problem, judge, drifts, largest_ridge)
    facts = LayerFit(
        layer=layer,
        tokens=len(fit.routed.hidden),
        experts=count,
        ridge=chosen,
        drift=drift,
        error_before=judge.relative(judge.before),
        error_after=judge.relative(after),
        sweeps=sweeps,
        unreached=tuple(e for e in range(count) if e not in reached),
        shared=SHARED in weights,
    )
    if SHARED in weights:
        weights[SHARED] = weights[SHARED] / scale
    return facts, weights


def _shared_scale(features: ExpertFeatures, reached: Mapping[int, torch.Tensor], routed: Routed) -> float:
    """By which the shared expert's features are divided to be as large as the routed ones': so that a ridge binds both
    by the same share of their own mean diagonal."""
    assert routed.shared is not None
    squares = sum(float(features.of(e)[1].square().sum(dtype=torch.float64)) for e in reached)
    own = float((routed.shared.square().sum(1, dtype=torch.float64) * routed.weight).sum()) / routed.shared.shape[1]
    entries = sum(down.shape[0] for down in reached.values())
    return float(own / (squares / entries)) ** 0.5 if own > 0 and squares > 0 else 1.0
