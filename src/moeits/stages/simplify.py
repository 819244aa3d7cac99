"""Score or calibrate, plan, prune, and refit or heal, in one go: the paper's Algorithm 1."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from moeits.calibration.genetic import not_foreseen
from moeits.calibration.settings import StageResources, Tokens, Watching
from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.replaceable import remove_checkpoint
from moeits.choosing.criteria import criterion_named, watches_tokens
from moeits.choosing.limits import Limits
from moeits.choosing.needs import scoring_for, watches
from moeits.choosing.protection import named_by
from moeits.choosing.pruning_plan import PruningPlan
from moeits.choosing.settings import Budget, Choice
from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.finished import Workplace, workplace
from moeits.foreseen import Work
from moeits.left_over import beside, check_room_for_healing, check_room_for_refit, is_left_over
from moeits.progress import Progress, silent
from moeits.refitting.memory import held_bytes
from moeits.refitting.requirements import check_can_be_fitted, check_pair
from moeits.refitting.settings import Fitting
from moeits.scoring.rehearsal import Rehearsal, left_by, rehearse
from moeits.settings import with_settings
from moeits.signals.settings import Scoring
from moeits.signals.watched import SEARCHED
from moeits.sizes import format_size, parse_size
from moeits.stages.calibrate import asked_for, calibrated, check_runs, watching_work
from moeits.stages.heal import check_healing
from moeits.stages.heal import heal as heal_stage
from moeits.stages.plan import plan
from moeits.stages.prune import check_request, prune
from moeits.stages.refit import refit_work, refitted
from moeits.stages.score import scored
from moeits.surgery.carried_out import carried_out, check_layout
from moeits.surgery.edited import check_numbers
from moeits.surgery.settings import Writing
from moeits.trials.rehearsal import pruned_at_random


@with_settings
def simplify(
    model: str | Path,
    *,
    output: str | Path,
    budget: Budget,
    choice: Choice,
    scoring: Scoring,
    resources: StageResources,
    writing: Writing,
    watching: Watching,
    opening: Opening,
    heal: str | Path | None = None,
    recipe: str = "paper",
    progress: Progress = silent,
) -> PruningPlan | Rehearsal:
    """Make a checkpoint smaller: `score`, `plan` and `prune` in one go, with the arguments of all three.

    Paper: Algorithm 1. With `heal` (data) the result is healed by `recipe`, with `refit` refitted; until that is done
    it lies in OUTPUT.pruned. What is wrong with an argument is said before anything is scored. A killed run goes on
    where it was, from OUTPUT.partial; a healing by `moeits heal OUTPUT.pruned --resume`. Returns the plan as it was
    carried out; with `dry_run` what it would take. Raises what stages raise, SettingError where no expert has to go.
    """
    checkpoint = opening.open(model, check=architecture_of)
    moe = MoELayout.of(checkpoint)
    check_request(checkpoint, moe, output=output, writing=writing)
    pruned = beside(Path(output)) if watching.refit or heal is not None else Path(output)
    _check_treatment(checkpoint, Path(output), heal, recipe, writing, watching, resources)
    limits = _within_reach(checkpoint, moe, budget, choice, writing)
    _check_needed(checkpoint, limits, budget, force=watching.force)
    scores = scoring_for(choice.criterion, scoring, choice.edit_needs)
    if writing.dry_run:
        copies = 1 + (pruned != Path(output))
        return _rehearsed(checkpoint, limits, budget, Path(output), scores, resources, watching, copies)
    with workplace(Path(output), forget_on=Exception, progress=progress) as place:
        windows = cache(partial(_windows, checkpoint, watching.texts(choice.seed), progress))
        evidence = _evidence(checkpoint, place, limits, budget, scores, resources, windows, opening, progress)
        chosen = plan(evidence, budget=budget, choice=choice)
        _check_removes(checkpoint, chosen, force=watching.force)
        done = carried_out(checkpoint, moe, chosen, writing, chosen.coverage).plan
        if not watching.refit or not is_left_over(pruned, done, output, place):
            prune(checkpoint, plan=chosen, output=pruned, writing=writing, opening=opening, progress=progress)
        if watching.refit:
            _refit(pruned, checkpoint, Path(output), place, windows, resources, writing, opening, progress)
    if heal is not None:
        heal_stage(pruned, data=heal, output=output, recipe=recipe, overwrite=writing.overwrite, progress=progress)
    if pruned != Path(output):
        remove_checkpoint(pruned)
    return done


def _evidence(
    checkpoint: Checkpoint,
    place: Workplace,
    limits: Limits,
    budget: Budget,
    scoring: Scoring | None,
    resources: StageResources,
    windows: Callable[[], Any],
    opening: Opening,
    progress: Progress,
) -> Evidence:
    """What the criterion chooses by: scores of weights, what experts do at some tokens, or sizes alone."""
    if scoring is not None:
        return scored(checkpoint, place, scoring, resources.scoring, opening, progress)
    if criterion_named(limits.choice.criterion).needs:
        check_runs(checkpoint)
        selection, also = _asked_by(limits.choice)
        asked = (windows(), resources.watching, opening, selection, progress)
        watch = partial(calibrated, checkpoint, place, *asked, also=also)
        return watch(counts=_counts(limits, budget, watch)) if _searches(limits.choice) else watch()
    return Evidence(inventory=replace(limits.inventory, coverage=opening.coverage(checkpoint, progress)))


def _asked_by(choice: Choice) -> tuple[int, set[str]]:
    """For criterion and edit: on how many tokens experts are tried out, and what else calibrating is to find."""
    return asked_for({*choice.edit_needs, *criterion_named(choice.criterion).needs})


def _searches(choice: Choice) -> bool:
    """Whether sets are searched for, of counts that have to be known before."""
    return SEARCHED in criterion_named(choice.criterion).needs


def _counts(limits: Limits, budget: Budget, watch: Callable[[], Evidence]) -> Mapping[int, int]:
    """How many experts of each layer stay. Where their importance says so, all tokens go through the model before."""
    if asked := limits.counts(budget):
        return asked[0]
    return plan(watch(), budget=budget, choice=_by_importance(limits.choice)).counts


def _by_importance(choice: Choice) -> Choice:
    """Who says how many experts of each layer stay: MoE-I2's importance, which edits nothing."""
    nothing: dict[str, Any] = dict.fromkeys(choice.of_edit())
    return replace(choice, criterion="moe-i2", edit="none", **nothing)


def _windows(checkpoint: Checkpoint, texts: Tokens, progress: Progress) -> Any:
    """The tokens by which experts are chosen and refitted."""
    from moeits.calibration.texts import windows_of

    return windows_of(checkpoint, texts, progress)


def _check_needed(checkpoint: Checkpoint, limits: Limits, budget: Budget, *, force: bool) -> None:
    """The budget is not met already, with all experts; of a tau only scores tell. Raises SettingError."""
    if force or budget.tau is not None:
        return
    before = limits.inventory.num_experts
    asked, bound = limits.counts(budget), limits.bound(budget)
    if (asked and asked[0] == before) or (bound and bound.met(limits.inventory.sizes(before))):
        raise SettingError(
            f"{checkpoint.source} is within that budget as it is ({format_size(checkpoint.nbytes)} of tensors): no "
            "expert has to go, and nothing was written. Give a tighter budget, or --force for a copy."
        )


def _check_removes(checkpoint: Checkpoint, chosen: PruningPlan, *, force: bool) -> None:
    """The plan removes an expert. Raises SettingError."""
    if force or chosen.summary["experts_kept"] < chosen.summary["experts_before"]:
        return
    if len(chosen.summary["floored_layers"]) == len(chosen.kept):
        raise SettingError(
            f"Every layer of {checkpoint.source} is at its floor: no expert can go, and nothing was written. Lower the "
            "floor with --min-experts, or give --force for a copy."
        )
    raise SettingError(
        f"That tau removes no expert of {checkpoint.source}, and nothing was written. Give a smaller one, or --force "
        "for a copy."
    )


def _share_of(checkpoint: Checkpoint, limits: Limits, budget: Budget) -> float:
    """The share that goes, to try a refit on: that of the experts that a budget leaves; half where only scores tell."""
    kept, _ = left_by(checkpoint, limits, budget)
    before = sum(limits.inventory.num_experts.values())
    return 0.5 if kept is None else min(0.9, max(1 / before, 1 - kept / before))


def _rehearsed(
    checkpoint: Checkpoint,
    limits: Limits,
    budget: Budget,
    output: Path,
    scoring: Scoring | None,
    resources: StageResources,
    watching: Watching,
    copies: int,
) -> Rehearsal:
    """What it would take. Until a refit or a healing is done, the pruned checkpoint lies beside its result."""
    chooses = scoring is None and bool(criterion_named(limits.choice.criterion).needs)
    watches, searches = chooses or watching.refit, _searches(limits.choice)
    texts, machine = watching.texts(limits.choice.seed), resources.watching
    work: list[Work] = []
    if chooses:
        check_runs(checkpoint)
        selection, also = _asked_by(limits.choice)
        passes = 2 if searches and limits.counts(budget) is None else 1  # the first one says how many stay
        once = watching_work(checkpoint, texts, selection, machine, rounding="rounding_errors" in also)
        work += [each.repeated(passes) for each in once]
    if watching.refit:
        middle = pruned_at_random(checkpoint, _share_of(checkpoint, limits, budget))
        work += refit_work(checkpoint, middle, texts, Fitting(), machine)
    most_bytes = parse_size(resources.watching.memory, "--memory")
    return rehearse(
        checkpoint,
        limits,
        budget,
        output=output,
        copies=copies,
        scoring=scoring,
        resources=resources.scoring,
        watched_tokens=watching.tokens if watches else None,
        watching_memory_bytes=held_bytes(checkpoint, most_bytes, refit=watching.refit) if watches else None,
        watching=work,
        untold=not_foreseen(searches=searches),
    )


def _refit(
    pruned: Path,
    parent: Checkpoint,
    output: Path,
    place: Workplace,
    windows: Callable[[], Any],
    resources: StageResources,
    writing: Writing,
    opening: Opening,
    progress: Progress,
) -> None:
    """Refit what was pruned."""
    left = Checkpoint.open(pruned)
    check_pair(left, parent, opening, progress)
    asked = (Fitting(), resources.watching, progress)
    refitted(place, windows(), left, parent, output, *asked, overwrite=writing.overwrite)


def _within_reach(checkpoint: Checkpoint, moe: MoELayout, budget: Budget, choice: Choice, writing: Writing) -> Limits:
    """How far down each layer may go. What floors, groups, protection or the layout forbid is said before scoring."""
    if choice.super_experts and not watches_tokens(criterion_named(choice.criterion)):
        raise SettingError("--super-experts needs a criterion that watches tokens, such as reap or reconstruction.")
    _check_edit(checkpoint, moe, choice)
    inventory = Inventory.of(checkpoint, moe)
    limits = Limits(inventory, choice, named_by(choice.protect, inventory))
    limits.check(budget)
    asked = limits.counts(budget)
    if asked is None and _searches(choice):
        _ = _by_importance(choice)  # raises what it would after the first calibration
    check_layout(checkpoint, moe, writing, asked and asked[0])
    return limits


def _check_edit(checkpoint: Checkpoint, moe: MoELayout, choice: Choice) -> None:
    """An edit will have what it needs: scores of pairs or what tokens show, and experts that are numbers."""
    needs = choice.edit_needs
    if "redundancy" in needs and scoring_for(choice.criterion, Scoring()) is None:
        raise SettingError(
            f"--edit {choice.edit} needs the redundancy of pairs, and --criterion {choice.criterion} scores no "
            "weights. Score and calibrate, then give moeits plan both files."
        )
    if {*needs} - {"redundancy"} and not watches(choice.criterion):
        raise SettingError(
            f"--edit {choice.edit} needs {' and '.join(needs)}, and --criterion {choice.criterion} watches no tokens. "
            "Calibrate (and score), then give moeits plan all files."
        )
    for layer in moe.layers.values() if choice.edit != "none" else ():
        check_numbers(checkpoint, layer, choice.edit)


def _check_treatment(
    checkpoint: Checkpoint,
    output: Path,
    heal: str | Path | None,
    recipe: str,
    writing: Writing,
    watching: Watching,
    resources: StageResources,
) -> None:
    """What is pruned can be refitted or healed as asked for, and nothing that was interrupted is in the way.

    Raises SettingError, CalibrationError, HealingError; OutputError, which says how to go on.
    """
    pruned, overwrite = beside(output), writing.overwrite
    if watching.refit and heal is not None:
        raise SettingError("--refit and --heal do not go in one command: heal what --refit leaves, with moeits heal.")
    if writing.layout == "padded" and (watching.refit or heal is not None):
        raise SettingError(
            "--layout padded comes last, after --refit or --heal: do these with --layout per-layer, and pad what they "
            "leave."
        )
    if watching.refit:
        from moeits.calibration.texts import check_texts

        check_can_be_fitted(checkpoint, watching.tokens, resources.watching.memory)
        check_room_for_refit(checkpoint, pruned, output, overwrite=overwrite)
        check_texts(checkpoint, watching.texts(seed=0))
    elif heal is not None:
        check_room_for_healing(checkpoint, pruned, output, heal, recipe, overwrite=overwrite)
        check_healing(checkpoint, data=heal, recipe=recipe)
