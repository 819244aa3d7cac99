"""Score, plan, prune and heal in one go: the paper's Algorithm 1."""

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.writing import check_output
from moeits.choosing.criteria import criterion_named
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import OutputError
from moeits.evidence import Evidence
from moeits.experts.architectures import architecture_of
from moeits.experts.layout import MoELayout
from moeits.progress import Progress, silent
from moeits.stages.heal import check_healing
from moeits.stages.heal import heal as heal_stage
from moeits.stages.plan import plan
from moeits.stages.prune import check_layout, check_request, prune
from moeits.stages.score import score


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
    heal: str | Path | None = None,
    recipe: str = "paper",
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PruningPlan:
    """Make a checkpoint smaller: `score`, `plan` and `prune` in one go, with the arguments of all three.

    Paper: Algorithm 1. With `heal` (data) the pruned checkpoint is healed by `recipe`; until that is done it lies in
    OUTPUT.pruned, from where `moeits heal OUTPUT.pruned --resume` goes on after a kill. Otherwise nothing is kept in
    between. What is wrong with an argument, or out of reach of a budget, is said before anything is scored. Returns the
    plan as it was carried out. Raises what the stages raise.
    """
    checkpoint = Checkpoint.open(model, revision=revision, check=architecture_of)
    moe = MoELayout.of(checkpoint)
    check_request(checkpoint, moe, output=output, layout=layout, max_shard_size=max_shard_size, overwrite=overwrite)
    pruned = Path(output) if heal is None else Path(output).with_name(Path(output).name + ".pruned")
    if heal is not None:
        _check_left_over(checkpoint, pruned, Path(output), heal, recipe, overwrite=overwrite)
        check_healing(checkpoint, data=heal, recipe=recipe)
    evidence = Evidence.without_scores(checkpoint, moe)
    planned = partial(
        plan,
        tau=tau,
        reduction=reduction,
        max_size=max_size,
        experts_per_layer=experts_per_layer,
        like=like,
        criterion=criterion,
        min_experts=min_experts,
        seed=seed,
    )
    if criterion_named(criterion).needs_redundancy:
        rehearsed = planned(_rehearsal(evidence))
        # Only counts that are asked for are known before scoring.
        check_layout(checkpoint, moe, layout, rehearsed if like is not None or experts_per_layer is not None else None)
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
    done = prune(
        checkpoint,
        plan=planned(evidence),
        output=pruned,
        layout=layout,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        progress=progress,
    )
    if heal is not None:
        heal_stage(pruned, data=heal, output=output, recipe=recipe, overwrite=overwrite, progress=progress)
        shutil.rmtree(pruned)
    return done


def _check_left_over(
    checkpoint: Checkpoint, pruned: Path, output: Path, data: str | Path, recipe: str, *, overwrite: bool
) -> None:
    """Nothing of an interrupted healing is in the way. Raises OutputError, which says how to go on with it."""
    healing = output.with_name(output.name + ".healing")
    if os.path.lexists(pruned) and not (overwrite and not healing.exists()):
        go_on = ["moeits", "heal", str(pruned), "--data", str(data), "--recipe", recipe, "--output", str(output)]
        go_on += ["--resume"] if healing.exists() else []
        both = f" and {healing}" if healing.exists() else ""
        raise OutputError(
            f"{pruned} is left over from an earlier run. Remove it{both} to begin again, or go on with: "
            + shlex.join(go_on)
        )
    if healing.exists():
        raise OutputError(f"{healing} is left over from an earlier healing. Remove it to begin again.")
    check_output(pruned, sources=[checkpoint.folder], overwrite=overwrite)


def _rehearsal(facts: Evidence) -> Evidence:
    """Evidence with made-up scores: what cannot be planned with it cannot be planned at all.

    Scoring takes its time, so a budget that makes no sense, or that floors and groups forbid, is found out before.
    """
    apart = {i: np.abs(np.subtract.outer(*2 * [np.arange(layer.num_experts)])) for i, layer in facts.layers.items()}
    return replace(
        facts,
        redundancy={i: matrix.astype(float) for i, matrix in apart.items()},
        floor={i: np.zeros(matrix.shape) for i, matrix in apart.items()},
    )
