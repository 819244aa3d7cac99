"""What choosing by some criteria would take, and a pruned model to try a refit on, of which nothing is written."""

from collections.abc import Iterable
from pathlib import Path

from moeits.calibration.settings import Machine, Tokens
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import criterion_named
from moeits.choosing.needs import scoring_for, watches
from moeits.evaluation.perplexity import read_text
from moeits.evaluation.rehearsal import evaluating
from moeits.evaluation.settings import Inference, Questions
from moeits.evidence import Evidence
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.foreseen import Work, copying, reading
from moeits.measurement.rehearsal import measuring
from moeits.measurement.settings import Workload
from moeits.scoring.rehearsal import rehearse_scoring
from moeits.signals.settings import Resources, Scoring
from moeits.stages.calibrate import asked_for, watching_work
from moeits.stages.plan import plan
from moeits.surgery.unwritten import unwritten
from moeits.sweeping.settings import OF_QUESTIONS, PointSettings


def choosing_work(
    checkpoint: Checkpoint,
    criteria: Iterable[str],
    texts: Tokens,
    machine: Machine,
    resources: Resources = Resources(),  # noqa: B008 - frozen
) -> tuple[Work, ...]:
    """One scoring and one calibration, each if a criterion needs it."""
    criteria = list(criteria)
    work: list[Work] = []
    scorings = [found for name in criteria if not watches(name) and (found := scoring_for(name, Scoring()))]
    if scorings:
        work += rehearse_scoring(checkpoint, scorings[0], resources, output=None, share=1.0).work
    watching = [name for name in criteria if watches(name)]
    if watching:
        selection, _ = asked_for([need for name in watching for need in criterion_named(name).needs])
        work += watching_work(checkpoint, texts, selection, machine)
    return tuple(work)


def point_work(
    checkpoint: Checkpoint, points: PointSettings, output: str | Path
) -> tuple[tuple[Work, ...], tuple[str, ...]]:
    """The work at one model of a run, pruned, evaluated and measured, and what is not in it; nothing of sizes alone."""
    if not points.evaluation and not points.footprint:
        return (), ()
    work, untold = [copying(checkpoint.nbytes, checkpoint.shards[0], output, "pruning")], list[str]()
    if asked := points.evaluation:
        questions = Questions(**{name: asked[name] for name in OF_QUESTIONS})
        text = None if points.perplexity is None else read_text(points.perplexity, points.limit)
        evaluations, left_out = evaluating(checkpoint, questions, Inference(dtype=points.dtype), text)
        work += [reading(checkpoint.nbytes, checkpoint.shards[0], "loading the model"), *evaluations]
        untold += left_out
    if points.footprint:
        measured, left_out = measuring(checkpoint, Workload(**points.footprint))
        work += measured
        untold += left_out
    if points.heal is not None:
        untold.append("Healings are not in the seconds: moeits heal --dry-run of a pruned checkpoint tells of one.")
    return tuple(work), tuple(untold)


def pruned_at_random(checkpoint: Checkpoint, reduction: float) -> Checkpoint:
    """What a random choice of that size would leave; nothing is written."""
    evidence = Evidence(inventory=Inventory.of(checkpoint, MoELayout.of(checkpoint)))
    return unwritten(checkpoint, plan(evidence, criterion="random", reduction=reduction))
