"""Several criteria at one size, on one text: what each choice costs, refitted or not, beside random ones."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeits.calibration.genetic import not_foreseen
from moeits.calibration.settings import Machine, Tokens, writing_itself
from moeits.checkpoint.opening import Source
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import criterion_named
from moeits.choosing.needs import watches
from moeits.choosing.pruning_plan import PruningPlan
from moeits.criteria_file import CriteriaFile
from moeits.evidence import Evidence
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.finished import workplace
from moeits.foreseen import Foreseen, free_bytes
from moeits.measurement.ledger import Ledger
from moeits.progress import Progress, silent
from moeits.refitting.memory import held_bytes, needed_bytes
from moeits.refitting.requirements import check_can_be_fitted
from moeits.refitting.settings import Fitting
from moeits.settings import with_settings
from moeits.signals.watched import SEARCHED
from moeits.sizes import parse_size
from moeits.stages.plan import plan
from moeits.stages.refit import refit_work
from moeits.sweeping.points import check_points
from moeits.sweeping.settings import facts_of
from moeits.trials.record import empty_record, evidence_for, record_of
from moeits.trials.rehearsal import choosing_work, point_work, pruned_at_random
from moeits.trials.rows import CriteriaFolder, RowFolder, RowWork
from moeits.trials.settings import Contest
from moeits.version import __version__

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CriteriaComparison:
    """A comparison of criteria, as RUN/criteria.json holds it."""

    found: CriteriaFile

    def facts(self) -> dict[str, Any]:
        """The comparison as a JSON value."""
        return {"format": FORMAT, "kind": "criteria", "moeits": __version__, **self.found}


@with_settings
def compare_criteria(
    model: str | Path,
    *,
    output: str | Path,
    contest: Contest,
    texts: Tokens,
    fitting: Fitting,
    machine: Machine,
    source: Source,
    fresh: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> CriteriaComparison | Any:
    """Let several criteria keep the same number of experts in each layer, and see what that costs on held-out text.

    The model is scored once and calibrated once. Each choice of `criteria` is pruned, evaluated on `perplexity`, and
    with `refit` refitted and evaluated again; with `heal` healed as well. Every loss stands beside the unpruned
    model's, with the 95 % interval of its rise by a paired bootstrap over documents, and beside what it took: seconds,
    joules with `energy`, peak memory, tokens and where they came from. All of it are files in the folder `output`,
    which `moeits report` shows; what is finished is never done again, and further criteria are added. With `dry_run`
    a `Foreseen` says what it would take, and nothing is done.

    Raises what the stages raise, and SettingError if the folder holds a comparison on another checkpoint or with other
    settings.
    """
    run = CriteriaFolder(Path(output))
    checkpoint = source.open(model, check=architecture_of)
    _check(checkpoint, contest, texts, machine)
    like = _size(checkpoint, contest)
    run.check_source(checkpoint.folder)
    if dry_run:
        return _foreseen(checkpoint, run, contest, texts, fitting, machine)
    with workplace(run.path, progress=progress):  # one run at a time
        run.make(fresh=fresh)
        settings = _settings(contest, texts, fitting)
        before = run.go_on(checkpoint.fingerprint, settings)
        if before is None:
            # What is asked for stands there from the start, so that a killed run cannot be gone on with otherwise.
            run.save(CriteriaComparison(found=empty_record(checkpoint, like, settings)).facts())
        work = _work(checkpoint, run, contest, texts, fitting, machine, progress)
        chosen = _choose(work, run, contest, like)
        work.all_rows([run.unpruned, *(each for row in chosen for each in _states(row, contest.refit))])
        known = [] if before is None else [run.row(row["criterion"], row["seed"]) for row in before["rows"]]
        made = CriteriaComparison(found=record_of(work, run, like, settings, [*known, *chosen]))
        run.save(made.facts())
        return made


def _work(
    checkpoint: Checkpoint,
    run: CriteriaFolder,
    contest: Contest,
    texts: Tokens,
    fitting: Fitting,
    machine: Machine,
    progress: Progress,
) -> RowWork:
    return RowWork(
        checkpoint=checkpoint,
        run=run,
        ledger=Ledger(run.ledger, energy=contest.energy, country=contest.country),
        points=contest.points,
        progress=progress,
        texts=texts,
        fitting=fitting,
        machine=machine,
    )


def _foreseen(
    checkpoint: Checkpoint, run: CriteriaFolder, contest: Contest, texts: Tokens, fitting: Fitting, machine: Machine
) -> Foreseen:
    """Every row is taken to be as large as the source."""
    entrants = contest.entrants
    work = [*choosing_work(checkpoint, dict(entrants), texts, machine)]
    each, untold = point_work(checkpoint, contest.points, run.path)
    rows = 1 + len(entrants) * (2 if contest.refit == "both" else 1)
    work += [one.repeated(rows) for one in each]
    refits = 0 if contest.refit == "no" else len(entrants)
    if refits:
        pruned = pruned_at_random(checkpoint, contest.reduction)
        work += [one.repeated(refits) for one in refit_work(checkpoint, pruned, texts, fitting, machine)]
    searches = any(SEARCHED in criterion_named(name).needs for name, _ in entrants)
    most, tokens = parse_size(machine.memory, "--memory"), texts.tokens + texts.held_out
    needed = needed_bytes(checkpoint, tokens, most, refit=bool(refits))
    return Foreseen(
        source=checkpoint.source,
        output=str(run.path),
        reads_bytes=(2 * rows + 2 * refits) * checkpoint.nbytes,
        disk_bytes=2 * checkpoint.nbytes,
        disk_free_bytes=free_bytes(run.path),
        memory_bytes=held_bytes(checkpoint, needed, refit=bool(refits)),
        work=tuple(work),
        not_foreseen=(*untold, *writing_itself(texts), *not_foreseen(searches=searches)),
    )


def _check(checkpoint: Checkpoint, contest: Contest, texts: Tokens, machine: Machine) -> None:
    """What can be known to be wrong before anything is scored. Raises what the stages raise."""
    check_points(contest.points, checkpoint)
    if contest.refit != "no":
        check_can_be_fitted(checkpoint, texts.tokens, machine.memory)
    if contest.refit != "no" or any(watches(criterion) for criterion, _ in contest.entrants):
        from moeits.calibration.texts import check_texts

        check_texts(checkpoint, texts)


def _size(checkpoint: Checkpoint, contest: Contest) -> PruningPlan:
    """A plan whose counts all choices share. Raises BudgetOutOfReach."""
    evidence = Evidence(inventory=Inventory.of(checkpoint, MoELayout.of(checkpoint)))
    return plan(evidence, criterion="random", reduction=contest.reduction, min_experts=contest.min_experts)


def _settings(contest: Contest, texts: Tokens, fitting: Fitting) -> dict[str, Any]:
    """What the numbers of a run depend on: data by name and content, never by where they lie."""
    sources = [facts_of({"data": source}) for source in texts.sources()]
    return {
        "keep": 1 - contest.reduction,
        "min_experts": contest.min_experts,
        "tokens": {
            **asdict(texts),
            "data": [each["data"] for each in sources if each],
            **({"weights": list(texts.weights)} if texts.weights else {}),
        },
        "refit": asdict(fitting),
        "evaluation": facts_of(contest.points.evaluation),
        "healing": facts_of(contest.points.healing),
    }


def _choose(work: RowWork, run: CriteriaFolder, contest: Contest, like: PruningPlan) -> list[RowFolder]:
    """The folder of every choice, with its plan; scored and calibrated once, and only if a plan is missing."""
    rows = [run.row(criterion, seed) for criterion, seed in contest.entrants]
    missing = [
        (row, criterion) for row, (criterion, _) in zip(rows, contest.entrants, strict=True) if not row.plan.exists()
    ]
    if missing:
        evidence = evidence_for(work, run, {criterion for _, criterion in missing}, like.counts)
        for row, criterion in missing:
            row.path.mkdir(exist_ok=True)
            choice = {"criterion": criterion, "seed": row.seed or 0, "min_experts": contest.min_experts}
            plan(evidence, like=like, **choice).save(row.plan)
    return rows


def _states(row: RowFolder, refit: str) -> list[RowFolder]:
    return {"no": [row], "yes": [row.refitted], "both": [row, row.refitted]}[refit]
