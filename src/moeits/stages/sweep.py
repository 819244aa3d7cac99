"""One scoring, every tau: what each leaves, and on request what it still knows, healed and not (paper, Figure 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any

from moeits.calibration.settings import StageResources, Tokens, writing_itself
from moeits.checkpoint.opening import Source
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import criterion_named
from moeits.choosing.needs import scoring_for
from moeits.choosing.planner import Planner
from moeits.choosing.pruning_plan import PruningPlan
from moeits.choosing.settings import Choice
from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from moeits.finished import workplace
from moeits.foreseen import Foreseen, free_bytes
from moeits.measurement.ledger import Ledger
from moeits.progress import Progress, silent
from moeits.settings import with_settings
from moeits.signals.settings import Scoring
from moeits.stages.calibrate import calibrate
from moeits.stages.score import score
from moeits.sweeping.points import PointWork, check_points
from moeits.sweeping.run_folder import PointFolder, RunFolder
from moeits.sweeping.settings import PointSettings, Ranking, Watched
from moeits.trials.rehearsal import choosing_work, point_work
from moeits.version import __version__

FORMAT = 1
MOST_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """What one tau leaves."""

    tau: float
    folder: str
    """Name of the point's folder in RUN; taus that keep the same experts share it."""
    kept: Mapping[int, int]
    """Decoder layer -> number of experts kept."""
    summary: Mapping[str, Any]
    """The summary of the plan: experts, parameters, bytes, P(down)."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A walk of tau over one model, as `RUN/sweep.json` holds it."""

    source: str
    model_type: str
    fingerprint: str
    settings: Mapping[str, Any]
    points: tuple[SweepPoint, ...]
    """Of all taus that the run was asked for so far, ascending."""

    def folders(self, taus: Sequence[float]) -> list[str]:
        """Names of the folders of these taus, each once."""
        return list(dict.fromkeys(point.folder for point in self.points if point.tau in taus))

    def facts(self) -> dict[str, Any]:
        """The sweep as the JSON value of sweep.json."""
        return {
            "format": FORMAT,
            "kind": "sweep",
            "moeits": __version__,
            "source": self.source,
            "model_type": self.model_type,
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "points": [
                {
                    "tau": point.tau,
                    "folder": point.folder,
                    "kept": {str(layer): count for layer, count in point.kept.items()},
                    "summary": dict(point.summary),
                }
                for point in self.points
            ],
        }


@with_settings
def sweep(
    model: str | Path,
    *,
    output: str | Path,
    tau: str = "0.5:5:0.25",
    points: PointSettings,
    ranking: Ranking,
    scoring: Scoring,
    watched: Watched,
    resources: StageResources,
    source: Source,
    fresh: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Sweep | Any:
    """Walk tau over one model: score it once, then cut the same elimination orders at every tau.

    Paper: section 6.2, Figure 2. What each tau leaves is known at once. With `evaluate` (tasks, as `moeits evaluate`
    takes them) or `perplexity`, the unpruned model and every pruned one are evaluated; with `heal` (data) each pruned
    one is then healed by `recipe` and evaluated again; with `measure` its footprint is taken. With `control` as many
    random choices of the same counts (seeds 0, 1, ...) are evaluated beside each, and the first of them is healed too.
    Taus that keep the same experts are one point. All results are files in the folder `output`, a finished one is never
    made again, taus are added to those that the folder has, and a checkpoint is removed when its point is finished. A
    criterion that watches experts at work does so on `tokens` tokens of `data`. Seconds of every stage go to the run's
    ledger, and joules too with `energy`. With `dry_run` a `Foreseen` says what it would take, and nothing is done.

    Raises what the stages raise, and SettingError if the folder holds a sweep of another checkpoint or other settings.
    """
    taus, run, asked = parse_taus(tau), RunFolder(Path(output)), _scoring_of(ranking.criterion, scoring)
    given = watched.texts() if asked is None else asked
    checkpoint = source.open(model, check=architecture_of)
    MoELayout.of(checkpoint)  # what cannot be pruned is said before there is a folder
    run.check_source(checkpoint.folder)
    if dry_run:
        check_points(points, checkpoint)
        return _foreseen(checkpoint, run, len(taus), ranking.criterion, points, watched, resources)
    with workplace(run.path, progress=progress):  # one run at a time
        if fresh or not run.evidence.exists():
            check_points(points, checkpoint)
        facts = {"scoring": (watched if asked is None else asked).facts(), **asdict(ranking), **points.facts()}
        settings = run.begin(fingerprint=checkpoint.fingerprint, settings=facts, fresh=fresh)
        ledger = Ledger(run.ledger, energy=points.energy, country=points.country)
        evidence = _evidence(checkpoint, run, given, resources, ledger, fresh=fresh, progress=progress)
        planner = Planner(evidence, Choice(**asdict(ranking)))
        walked = cut(planner, sorted({*run.taus(), *taus}), settings, run)
        pruned = [PointFolder(run.path / name) for name in walked.folders(taus)]
        controls = choose_at_random(evidence, pruned, points.control, ranking.min_experts)
        work = PointWork(checkpoint=checkpoint, run=run, ledger=ledger, points=points, progress=progress)
        work.all_points([run.unpruned, *(each for each in pruned if each != run.unpruned), *controls])
        return walked


def _foreseen(
    checkpoint: Checkpoint,
    run: RunFolder,
    taus: int,
    criterion: str,
    points: PointSettings,
    watched: Watched,
    resources: StageResources,
) -> Foreseen:
    """Every tau is taken to be a point of its own, and every point as large as the source."""
    choosing = choosing_work(checkpoint, [criterion], watched.texts(), resources.watching, resources.scoring)
    each, untold = point_work(checkpoint, points, run.path)
    models = 1 + taus * (1 + points.control)  # the unpruned one first
    work = [*choosing, *(one.repeated(models) for one in each)]
    return Foreseen(
        source=checkpoint.source,
        output=str(run.path),
        reads_bytes=(1 + (2 * models if each else 0)) * checkpoint.nbytes,
        disk_bytes=2 * checkpoint.nbytes if each else 0,
        disk_free_bytes=free_bytes(run.path),
        work=tuple(work),
        not_foreseen=(
            *untold,
            *writing_itself(watched.texts()),
            f"At most {taus} points: taus that keep the same experts are one, and pruned models are read sooner.",
        ),
    )


def _scoring_of(criterion: str, scoring: Scoring) -> Scoring | None:
    """The one scoring of a sweep; None for a criterion that watches experts at work.

    Raises SettingError for one that has no scores, over which alone a tau can be walked.
    """
    if not getattr(criterion_named(criterion), "has_levels", True):
        raise SettingError(
            f"--criterion {criterion} chooses a set of experts for each count and has no scores for a tau to cut: give "
            "moeits plan or moeits simplify a count, such as --experts-per-layer."
        )
    if not criterion_named(criterion).needs:
        raise SettingError(
            f"--criterion {criterion} has no scores for a tau to cut. Evaluate random choices beside another criterion "
            "with --control N."
        )
    return scoring_for(criterion, scoring)


def _evidence(
    checkpoint: Checkpoint,
    run: RunFolder,
    asked: Scoring | Tokens,
    resources: StageResources,
    ledger: Ledger,
    *,
    fresh: bool,
    progress: Progress,
) -> Evidence:
    """What the run's criterion must know: kept in the run, else by one scoring, or by watching on these tokens."""
    if run.sweep.exists() and run.evidence.exists():
        return Evidence.load(run.evidence)
    kept = {"output": run.evidence, "fresh": fresh, "progress": progress}
    if isinstance(asked, Scoring):
        with ledger.stage("scoring"):
            return score(checkpoint, scoring=asked, resources=resources.scoring, **kept)
    with ledger.stage("calibration"):
        return calibrate(checkpoint, texts=asked, machine=resources.watching, **kept)


def cut(planner: Planner, taus: Sequence[float], settings: Mapping[str, Any], run: RunFolder) -> Sweep:
    """The point of every tau; its plan, and the sweep itself, are written into the run."""
    points = []
    for tau in taus:
        plan = planner.plan(tau=tau)
        folder = run.point(plan.summary["experts_kept"], plan.summary["experts_before"])
        folder.path.mkdir(exist_ok=True)
        if not folder.plan.exists():
            plan.save(folder.plan)
        kept = {layer: len(experts) for layer, experts in plan.kept.items()}
        points.append(SweepPoint(tau=tau, folder=folder.path.name, kept=kept, summary=plan.summary))
    evidence = planner.evidence
    walked = Sweep(
        source=evidence.source,
        model_type=evidence.model_type,
        fingerprint=evidence.fingerprint,
        settings=settings,
        points=tuple(points),
    )
    run.save(walked.facts())
    return walked


def choose_at_random(
    evidence: Evidence, points: Sequence[PointFolder], seeds: int, min_experts: int | None
) -> list[PointFolder]:
    """The control of every pruned point: one random plan per seed, with the same number of experts in every layer."""
    controls = []
    for seed in range(seeds):
        planner = Planner(evidence, Choice(criterion="random", min_experts=min_experts, seed=seed))
        for point in points:
            plan = PruningPlan.load(point.plan)
            if plan.summary["experts_kept"] == plan.summary["experts_before"]:
                continue
            chosen = point.control(seed)
            chosen.path.mkdir(exist_ok=True)
            if not chosen.plan.exists():
                planner.plan(like=plan).save(chosen.plan)
            controls.append(chosen)
    return controls


def parse_taus(text: str) -> tuple[float, ...]:
    """The taus of `A:B:STEP`, both ends included, or of a list `A,B,C`; ascending. Raises SettingError."""
    try:
        if ":" in text:
            first, last, step = map(Decimal, text.split(":"))
            if step <= 0 or last < first or (last - first) / step >= MOST_POINTS:
                raise ValueError
            taus = [first + step * number for number in range(int((last - first) / step) + 1)]
        else:
            taus = [Decimal(item) for item in text.split(",")]
        if not all(tau.is_finite() and isfinite(tau) for tau in taus):
            raise ValueError
    except (ValueError, ArithmeticError):
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise SettingError(
            f"--tau {shown} is not a list of numbers, nor a range of at most {MOST_POINTS}: write FIRST:LAST:STEP, "
            "such as 0.5:5:0.25, or a list such as 0.5,1,2."
        ) from None
    return tuple(sorted({float(tau) for tau in taus}))
