"""Score, plan and prune in one go: the paper's Algorithm 1."""

from collections.abc import Mapping
from pathlib import Path

from moeits.checkpoint import Checkpoint
from moeits.criteria import criterion_named
from moeits.evidence import Evidence
from moeits.layout import MoELayout
from moeits.plan import PruningPlan, plan
from moeits.progress import Progress, silent
from moeits.prune import check_request, prune
from moeits.score import score


def simplify(
    model: str | Path,
    *,
    output: str | Path,
    tau: float | None = None,
    reduction: float | None = None,
    max_size: str | int | None = None,
    experts_per_layer: int | None = None,
    like: str | Path | PruningPlan | None = None,
    criterion: str = "moeits",
    min_experts: int | None = None,
    seed: int = 0,
    preset: str = "paper",
    estimator: str = "nmi",
    bins: str | int = "auto",
    projection_weights: Mapping[str, float] | None = None,
    diagonal: str = "zero",
    threads: int | None = None,
    memory: str | int = "2GiB",
    layout: str = "auto",
    max_shard_size: str | int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PruningPlan:
    """Make a checkpoint smaller: `score`, `plan` and `prune` with their own arguments, nothing kept in between.

    Paper: Algorithm 1 without the healing. Returns the plan as it was carried out. Raises what the three stages raise.
    """
    checkpoint = Checkpoint.open(model, revision=revision)
    check_request(checkpoint, output=output, layout=layout, max_shard_size=max_shard_size, overwrite=overwrite)
    if criterion_named(criterion).needs_redundancy:
        evidence = score(
            checkpoint,
            preset=preset,
            estimator=estimator,
            bins=bins,
            projection_weights=projection_weights,
            diagonal=diagonal,
            threads=threads,
            memory=memory,
            progress=progress,
        )
    else:
        evidence = Evidence.without_scores(checkpoint, MoELayout.of(checkpoint))
    made = plan(
        evidence,
        tau=tau,
        reduction=reduction,
        max_size=max_size,
        experts_per_layer=experts_per_layer,
        like=like,
        criterion=criterion,
        min_experts=min_experts,
        seed=seed,
    )
    return prune(
        checkpoint,
        plan=made,
        output=output,
        layout=layout,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        progress=progress,
    )
