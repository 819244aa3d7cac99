"""One scoring, every tau: what each leaves, and on request what it still knows, healed and not (paper, Figure 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from moeits.checkpoint import Checkpoint
from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.plan import Planner, PruningPlan
from moeits.progress import Progress, silent
from moeits.run_folder import PointFolder, RunFolder
from moeits.score import score
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


def sweep(
    model: str | Path,
    *,
    output: str | Path,
    tau: str = "0.5:5:0.25",
    min_experts: int | None = None,
    preset: str = "paper",
    estimator: str = "nmi",
    bins: str | int = "auto",
    projection_weights: Mapping[str, float] | None = None,
    diagonal: str = "zero",
    threads: int | None = None,
    memory: str | int = "2GiB",
    revision: str | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> Sweep:
    """Walk tau over one model: score once, then cut the same elimination orders at every tau."""
    taus, run = parse_taus(tau), RunFolder(Path(output))
    checkpoint = Checkpoint.open(model, revision=revision)
    scoring: dict[str, Any] = {"preset": preset, "estimator": estimator, "bins": str(bins), "diagonal": diagonal}
    scoring |= {"projection_weights": projection_weights}
    settings = {"scoring": scoring, "min_experts": min_experts}
    evidence = run.begin(fingerprint=checkpoint.fingerprint, settings=settings, fresh=fresh)
    if evidence is None:
        evidence = score(
            checkpoint,
            output=run.evidence,
            preset=preset,
            estimator=estimator,
            bins=bins,
            projection_weights=projection_weights,
            diagonal=diagonal,
            threads=threads,
            memory=memory,
            fresh=fresh,
            progress=progress,
        )
    planner = Planner(evidence, min_experts=min_experts)
    plans = {tau: planner.plan(tau=tau) for tau in taus}
    found = _sweep_of(evidence, settings, plans, run)
    for plan in plans.values():
        folder = _folder_of(plan, run)
        folder.path.mkdir(exist_ok=True)
        if not folder.plan.exists():
            plan.save(folder.plan)
    run.save(found.facts())
    return found


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
        if not all(tau.is_finite() for tau in taus):
            raise ValueError
    except (ValueError, InvalidOperation):
        raise SettingError(
            f"--tau {text} makes no sense: write FIRST:LAST:STEP, such as 0.5:5:0.25, or a list such as 0.5,1,2."
        ) from None
    return tuple(sorted({float(tau) for tau in taus}))


def _sweep_of(
    evidence: Evidence, settings: Mapping[str, Any], plans: Mapping[float, PruningPlan], run: RunFolder
) -> Sweep:
    return Sweep(
        source=evidence.source,
        model_type=evidence.model_type,
        fingerprint=evidence.fingerprint,
        settings=settings,
        points=tuple(
            SweepPoint(
                tau=tau,
                folder=_folder_of(plan, run).path.name,
                kept={layer: len(experts) for layer, experts in plan.kept.items()},
                summary=plan.summary,
            )
            for tau, plan in plans.items()
        ),
    )


def _folder_of(plan: PruningPlan, run: RunFolder) -> PointFolder:
    return run.point(plan.summary["experts_kept"], plan.summary["experts_before"])
