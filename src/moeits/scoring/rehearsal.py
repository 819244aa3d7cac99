"""What `simplify` or `prune` would take and leave: sizes, disk, memory and time, with nothing written."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.limits import Limits, removed_by
from moeits.choosing.settings import Budget
from moeits.engines.threads import Threads
from moeits.experts.layout import MoELayout
from moeits.scoring.estimate import Estimate, estimate
from moeits.scoring.layers import LayerScorer
from moeits.signals.settings import Resources, Scoring
from moeits.sizes import parse_size


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A run that was not made. Sizes are of tensors, headers not counted."""

    source: str
    output: str
    experts_before: int
    experts_kept: int | None
    """None where only scores can tell, as of a tau."""
    bytes_before: int
    bytes_after: int | None
    disk_bytes: int
    """At most, of all that lies on the disk of the output at a time."""
    disk_free_bytes: int
    scoring_seconds: float | None = None
    """An estimate, from one pair of experts that was timed on this machine; None where weights are not scored."""
    scoring_memory_bytes: int | None = None
    """Of the weights held at once."""
    watched_tokens: int | None = None
    """Tokens that go through every decoder layer; None where the model is not run."""
    watching_memory_bytes: int | None = None
    """About, of the weights that are run, in float32, and of what grows with the tokens."""


def rehearse(
    checkpoint: Checkpoint,
    limits: Limits,
    budget: Budget,
    *,
    output: Path,
    copies: int,
    scoring: Scoring | None,
    resources: Resources,
    watched_tokens: int | None,
    watching_memory_bytes: int | None,
) -> Rehearsal:
    """A simplification that was not made; `copies` is how many pruned checkpoints lie side by side at its end.

    Raises what a scoring would raise for the first two experts.
    """
    kept, after = _left(checkpoint, limits, budget)
    scored = None if scoring is None else _estimate(checkpoint, scoring, resources)
    return Rehearsal(
        source=checkpoint.source,
        output=str(output),
        experts_before=sum(limits.inventory.num_experts.values()),
        experts_kept=kept,
        bytes_before=checkpoint.nbytes,
        bytes_after=after,
        disk_bytes=copies * (checkpoint.nbytes if after is None else after),
        disk_free_bytes=free_bytes(output),
        scoring_seconds=None if scored is None else scored.seconds,
        scoring_memory_bytes=None if scored is None else scored.memory_bytes,
        watched_tokens=watched_tokens,
        watching_memory_bytes=watching_memory_bytes,
    )


def free_bytes(output: Path) -> int:
    """What is free on the disk where the output would be."""
    return shutil.disk_usage(next(parent for parent in output.absolute().parents if parent.exists())).free


def _left(checkpoint: Checkpoint, limits: Limits, budget: Budget) -> tuple[int | None, int | None]:
    """Experts and bytes that a budget leaves, experts of equal size taken to be equal; None of a tau."""
    if asked := limits.counts(budget):
        counts: Mapping[int, int] = asked[0]
        sizes = limits.inventory.sizes(counts)
        return sizes.experts, sizes.nbytes
    if budget.tau is not None:
        return None, None
    removed, each = removed_by(limits.inventory.layers, checkpoint.nbytes, budget.reduction, budget.max_size)
    return sum(limits.inventory.num_experts.values()) - removed, checkpoint.nbytes - removed * each


def _estimate(checkpoint: Checkpoint, scoring: Scoring, resources: Resources) -> Estimate:
    """Of the redundancy and of all signals beside it, one after the other."""
    layout = MoELayout.of(checkpoint)
    layout.check_scorable(checkpoint)
    projections, model_type = tuple(layout.architecture.projection_names), layout.architecture.model_type
    signals = [each.for_model(projections, model_type) for each in scoring.measured()]
    with Threads(resources.threads) as engine:
        memory_bytes = parse_size(resources.memory, "--memory")
        scorer = LayerScorer(checkpoint=checkpoint, layout=layout, engine=engine, memory_bytes=memory_bytes)
        parts = [estimate(scorer, signal) for signal in signals]
    return Estimate(seconds=sum(part.seconds for part in parts), memory_bytes=max(part.memory_bytes for part in parts))
