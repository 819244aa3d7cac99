"""What `simplify` or `prune` would take and leave: sizes, disk, memory and time, with nothing written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.limits import Limits, removed_by
from moeits.choosing.settings import Budget
from moeits.edits.in_order import not_foreseen
from moeits.engines.threads import Threads
from moeits.experts.layout import MoELayout
from moeits.foreseen import Foreseen, Work, copying, free_bytes
from moeits.scoring.estimate import Estimate, estimate
from moeits.scoring.layers import LayerScorer
from moeits.signals import PairSignal
from moeits.signals.settings import Resources, Scoring
from moeits.sizes import parse_size


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Foreseen):
    """A pruning that was not made. Sizes are of tensors, headers not counted."""

    output: str
    experts_before: int
    experts_kept: int | None
    """None where only scores can tell, as of a tau."""
    bytes_before: int
    bytes_after: int | None
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
    watching: Sequence[Work] = (),
    untold: Sequence[str] = (),
) -> Rehearsal:
    """A simplification that was not made; `copies` is how many pruned checkpoints lie side by side at its end.

    `watching` is the work of running its layers, as the caller counted it, `untold` what it did not count.

    Raises what a scoring would raise for the first two experts.
    """
    kept, after = left_by(checkpoint, limits, budget)
    scored = None if scoring is None else _estimate(checkpoint, scoring, resources)
    left = checkpoint.nbytes if after is None else after
    work = [*watching, *([] if scored is None else [of_scoring(scored)])]
    held = [each for each in (watching_memory_bytes, scored and scored.memory_bytes) if each]
    return Rehearsal(
        source=checkpoint.source,
        output=str(output),
        reads_bytes=left + (0 if scored is None else checkpoint.nbytes),
        writes_bytes=left,
        memory_bytes=max(held, default=None),
        work=(*work, copying(copies * left, checkpoint.shards[0], output)),
        not_foreseen=(
            *(("How many experts a tau leaves is known only by their scores.",) if after is None else ()),
            *untold,
            *not_foreseen(limits.choice.edit),
        ),
        experts_before=sum(limits.inventory.num_experts.values()),
        experts_kept=kept,
        bytes_before=checkpoint.nbytes,
        bytes_after=after,
        disk_bytes=copies * left,
        disk_free_bytes=free_bytes(output),
        scoring_seconds=None if scored is None else scored.seconds,
        scoring_memory_bytes=None if scored is None else scored.memory_bytes,
        watched_tokens=watched_tokens,
        watching_memory_bytes=watching_memory_bytes,
    )


def of_scoring(scored: Estimate) -> Work:
    """A scoring as work."""
    return Work(what="scoring experts", times=1, seconds_each=scored.seconds)


def rehearse_scoring(
    checkpoint: Checkpoint, scoring: Scoring, resources: Resources, *, output: str | Path | None, share: float
) -> Foreseen:
    """A scoring that was not made, of a share of the layers. Raises what it would raise for the first two experts."""
    found = _estimate(checkpoint, scoring, resources)
    experts = [moe.num_experts for moe in MoELayout.of(checkpoint).layers.values()]
    powers = [2 if isinstance(signal, PairSignal) else 1 for signal in scoring.measured()]
    nbytes = int(8 * share * sum(count**power for count in experts for power in powers))
    return Foreseen(
        source=checkpoint.source,
        output=None if output is None else str(output),
        reads_bytes=int(share * checkpoint.nbytes),
        writes_bytes=nbytes,
        disk_bytes=2 * nbytes,
        disk_free_bytes=free_bytes(output),
        memory_bytes=found.memory_bytes,
        work=(of_scoring(found).repeated(share),),
    )


def left_by(checkpoint: Checkpoint, limits: Limits, budget: Budget) -> tuple[int | None, int | None]:
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
