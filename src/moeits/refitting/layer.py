"""The refit of one layer: ridge and drift chosen on held-out tokens, old weights kept where nothing is gained."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from moeits.refitting.features import ExpertFeatures, Routed, down_of
from moeits.refitting.ridge import LayerProblem, RidgeTooSmall, grid, predicted

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


def _of(wanted: torch.Tensor, given: torch.Tensor, share: float) -> float:
    """Squared error of a mixture of what the solutions for the two targets give, side by side."""
    at_hand, back = given.chunk(2, dim=1)
    return float((wanted - at_hand.lerp(back, share)).square().sum(dtype=torch.float64))


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

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "unreached": list(self.unreached)}


def _search(
    problem: LayerProblem,
    errors: Callable[[], list[float]],
    before: float,
    drifts: Sequence[float],
    largest_ridge: float,
) -> tuple[float, float | None, float | None, dict[int, torch.Tensor], int]:
    """From the strongest ridge on, while held-out tokens gain: least error, its ridge, drift and weights; sweeps."""
    best: tuple[float, float | None, float | None, dict[int, torch.Tensor]] = (before, None, None, {})
    sweeps, worse = 0, 0
    for ridge in grid(largest_ridge):
        try:
            sweeps += problem.solve(ridge)
        except RidgeTooSmall:
            break
        error, share = min(zip(errors(), drifts, strict=True))
        if error < best[0]:
            best, worse = (error, ridge, share, problem.mixed(share)), 0
        else:
            worse += 1
            if worse > _PATIENCE:
                break
    return (*best, sweeps)


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
    """New down projections (I, H) of the experts that tokens reached; empty where the old ones stay."""
    features = ExpertFeatures(experts, fit.routed, most_bytes=most_bytes)
    judge = ExpertFeatures(experts, held_out.routed, most_bytes=most_bytes)
    everyone = {e: down_of(experts, e) for e in range(experts.down_proj.shape[0])}
    reached = {e: d for e, d in everyone.items() if (fit.routed.chosen == e).any()}
    unreached = tuple(e for e in everyone if e not in reached)
    root = held_out.routed.weight.sqrt()[:, None]
    wanted = held_out.back * root
    whole = float(wanted.square().sum(dtype=torch.float64)) or 1.0
    before = float((wanted - predicted(judge, everyone, wanted)).square().sum(dtype=torch.float64)) / whole
    problem = LayerProblem(features, reached, (fit.at_hand, fit.back), fit.routed.weight)
    still = predicted(judge, {e: everyone[e] for e in unreached}, wanted)

    def errors() -> list[float]:
        given = predicted(judge, problem.weights, torch.cat([still, still], 1), onto=True)
        return [_of(wanted, given, share) / whole for share in drifts]

    after, chosen, drift, weights, sweeps = _search(problem, errors, before, drifts, largest_ridge)
    facts = LayerFit(
        layer=layer,
        tokens=len(fit.routed.hidden),
        experts=len(everyone),
        ridge=chosen,
        drift=drift,
        error_before=before,
        error_after=after,
        sweeps=sweeps,
        unreached=unreached,
    )
    return facts, weights
