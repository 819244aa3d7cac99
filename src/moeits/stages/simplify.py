"""Score, plan, prune and heal in one go: the paper's Algorithm 1."""

import os
import shlex
from pathlib import Path

from moeits.calibration.settings import Machine, Watching
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.replaceable import remove_checkpoint
from moeits.checkpoint.writing import check_output
from moeits.choosing.criteria import criterion_named, watches_tokens
from moeits.choosing.limits import Limits
from moeits.choosing.needs import scoring_for
from moeits.choosing.protection import named_by
from moeits.choosing.pruning_plan import PruningPlan
from moeits.choosing.settings import Budget, Choice
from moeits.errors import OutputError, SettingError
from moeits.evidence import Evidence
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.progress import Progress, silent
from moeits.settings import with_settings
from moeits.signals.settings import Resources, Scoring
from moeits.stages.calibrate import calibrate
from moeits.stages.heal import check_healing
from moeits.stages.heal import heal as heal_stage
from moeits.stages.plan import plan
from moeits.stages.prune import check_layout, check_request, prune
from moeits.stages.refit import refit as refit_stage
from moeits.stages.score import score
from moeits.surgery.settings import Writing


@with_settings
def simplify(
    model: str | Path,
    *,
    output: str | Path,
    budget: Budget,
    choice: Choice,
    scoring: Scoring,
    resources: Resources,
    writing: Writing,
    watching: Watching,
    heal: str | Path | None = None,
    recipe: str = "paper",
    revision: str | None = None,
    progress: Progress = silent,
) -> PruningPlan:
    """Make a checkpoint smaller: `score`, `plan` and `prune` in one go, with the arguments of all three.

    Paper: Algorithm 1. With `heal` (data) the pruned checkpoint is healed by `recipe`; until that is done it lies in
    OUTPUT.pruned, from where `moeits heal OUTPUT.pruned --resume` goes on after a kill; with `refit` from where
    `moeits refit OUTPUT.pruned` does. Otherwise nothing is kept in between. Criteria that watch experts calibrate
    instead of scoring. What is wrong with an argument, or out of reach of a budget, is said before anything is scored.
    Returns the plan as it was carried out. Raises what the stages raise.
    """
    checkpoint = Checkpoint.open(model, revision=revision, check=architecture_of)
    moe = MoELayout.of(checkpoint)
    check_request(checkpoint, moe, output=output, writing=writing)
    pruned = _beside(Path(output)) if watching.refit or heal is not None else Path(output)
    if watching.refit:
        _check_refit(checkpoint, pruned, Path(output), heal, writing)
    elif heal is not None:
        _check_left_over(checkpoint, pruned, Path(output), heal, recipe, overwrite=writing.overwrite)
        check_healing(checkpoint, data=heal, recipe=recipe)
    evidence = Evidence(inventory=Inventory.of(checkpoint, moe))
    _check_within_reach(checkpoint, moe, evidence, budget, choice, writing)
    asked = scoring_for(choice.criterion, scoring)
    if asked is not None:
        evidence = score(checkpoint, scoring=asked, resources=resources, progress=progress)
    elif criterion_named(choice.criterion).needs:
        evidence = calibrate(checkpoint, texts=watching.texts(choice.seed), machine=Machine(), progress=progress)
    chosen = plan(evidence, budget=budget, choice=choice)
    done = prune(checkpoint, plan=chosen, output=pruned, writing=writing, progress=progress)
    if watching.refit:
        given = {"texts": watching.texts(choice.seed), "overwrite": writing.overwrite}
        refit_stage(pruned, parent=checkpoint.folder, output=output, progress=progress, **given)
        remove_checkpoint(pruned)
    elif heal is not None:
        heal_stage(pruned, data=heal, output=output, recipe=recipe, overwrite=writing.overwrite, progress=progress)
        remove_checkpoint(pruned)
    return done


def _beside(output: Path) -> Path:
    """Where the pruned checkpoint lies until what is made from it is done."""
    return output.with_name(output.name + ".pruned")


def _check_within_reach(
    checkpoint: Checkpoint, moe: MoELayout, facts: Evidence, budget: Budget, choice: Choice, writing: Writing
) -> None:
    """What floors, groups, protection or the layout forbid is said before anything is scored."""
    if choice.super_experts and not watches_tokens(criterion_named(choice.criterion)):
        raise SettingError("--super-experts needs a criterion that watches tokens, such as reap or reconstruction.")
    limits = Limits(facts.inventory, choice, named_by(choice.protect, facts.inventory))
    limits.check(budget)
    asked = limits.counts(budget)
    check_layout(checkpoint, moe, writing, asked and asked[0])


def _check_refit(checkpoint: Checkpoint, pruned: Path, output: Path, heal: object, writing: Writing) -> None:
    """Nothing of an interrupted refit is in the way. Raises OutputError, which says how to go on with it."""
    if heal is not None:
        raise SettingError("--refit and --heal do not go in one command: heal what --refit leaves, with moeits heal.")
    if os.path.lexists(pruned):
        go_on = shlex.join(["moeits", "refit", str(pruned), "--parent", "MODEL", "--output", str(output)])
        raise OutputError(
            f"{pruned} is left over from an earlier run. Remove it to begin again, or go on with: {go_on}"
        )
    check_output(pruned, sources=[checkpoint.folder], overwrite=writing.overwrite)


def _check_left_over(
    checkpoint: Checkpoint, pruned: Path, output: Path, data: str | Path, recipe: str, *, overwrite: bool
) -> None:
    """Nothing of an interrupted healing is in the way. Raises OutputError, which says how to go on with it."""
    check_output(pruned, sources=[checkpoint.folder], overwrite=True)
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
