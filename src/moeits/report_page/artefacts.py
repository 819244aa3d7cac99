"""The files of a run: read here and nowhere else, so that every number on a page comes from a file.

A run is the folder of a sweep, or any folder laid out like one: a folder for each pruned model, with its `plan.json`
and whichever of `unhealed.json`, `healed.json`, `healing.json`, `refit.json` and `footprint.json` there are;
`unpruned/` and the `forecast.json` of the model beside them.
Random choices of as many experts in every layer are the control of a model: in its own folder, or anywhere in the run.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moeits.choosing.criteria import CRITERIA
from moeits.choosing.pruning_plan import PruningPlan
from moeits.criteria_file import CriteriaFile, read_criteria
from moeits.errors import EvaluationError, MoeitsError
from moeits.evaluation.results import Results
from moeits.evidence import Evidence
from moeits.printable import printable
from moeits.run_files import (
    FootprintFile,
    ForecastFile,
    HealingFile,
    LedgerFile,
    RefitFile,
    SweepFile,
    read_file,
    read_sweep,
)
from moeits.typed_json import Typed

PARTS = ("plan", "unhealed", "healed", "healing", "footprint")
# What a plan's summary says of sizes, and the page cannot do without.
SIZES = (
    "experts_before",
    "experts_kept",
    "parameters_before",
    "parameters_after",
    "bytes_before",
    "bytes_after",
    "reduction",
    "reduction_of_all",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """One pruned model of a run, or the unpruned one; None where nothing is known of it."""

    name: str
    """Its folder, within the run."""
    taus: tuple[float, ...] = ()
    plan: PruningPlan | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Sizes before and after, as in a plan's summary; empty without a plan."""
    unhealed: Results | None = None
    healed: Results | None = None
    healing: HealingFile | None = None
    refit: RefitFile | None = None
    footprint: FootprintFile | None = None
    controls: tuple["Point", ...] = ()
    """Random choices of as many experts in every layer."""

    @property
    def is_random(self) -> bool:
        """Whether its experts were chosen at random."""
        return self.plan is not None and self.plan.criterion == "random"

    @property
    def counts(self) -> dict[int, int]:
        """Experts kept in each layer; empty without a plan."""
        return {layer: len(kept) for layer, kept in self.plan.kept.items()} if self.plan else {}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model and what was made of it."""

    name: str
    source: str
    model_type: str
    fingerprint: str
    evidence: Evidence | None
    sweep: SweepFile | None
    ledger: LedgerFile | None
    criteria: CriteriaFile | None
    """Of a comparison of criteria at one size."""
    forecast: ForecastFile | None = None
    unpruned: Point
    points: tuple[Point, ...]
    """By experts kept, the smallest model first."""
    files: Mapping[str, str]
    """Name of each file that was read, within the run -> its SHA-256."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Folder of each model that could not be read -> a sentence that says why."""


def read_run(folder: str | Path) -> Run:
    """Read a run; a model one of whose files is broken is left out.

    Raises EvaluationError if there is none, if a file of the whole run is broken, or if nothing can be read but broken
    models; EvidenceError, PlanError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"There is no run {folder}. Make one with: moeits sweep MODEL --output {folder}")
    reader = _Reader(folder)
    known = {name: reader.whole_point(name) for name in _point_folders(folder)}
    found = {name: point for name, point in known.items() if point}
    if reader.left_out and not found:
        raise next(iter(reader.left_out.values()))
    unpruned = found.pop("unpruned", Point(name="unpruned"))
    points = sorted((p for p in found.values() if p.plan), key=lambda point: point.summary["experts_kept"])
    about = _about(reader, [unpruned, *points])
    return Run(
        name=printable(folder.resolve().name),
        **about,
        evidence=reader.evidence,
        sweep=reader.sweep,
        ledger=reader.file("ledger.json", LedgerFile, "a ledger that moeits wrote"),
        criteria=reader.criteria,
        forecast=_forecast(reader, about),
        unpruned=unpruned,
        points=_with_controls(points),
        files=reader.files,
        left_out={name: str(why).replace(f"{folder}/", "") for name, why in reader.left_out.items()},
    )


def _about(reader: "_Reader", points: Iterable[Point]) -> dict[str, str]:
    """Which model it is, after the sweep, the evidence or a plan. Raises EvaluationError if plans are of another."""
    every = (each for point in points for each in (point, *point.controls))
    plans = {point.name: point.plan for point in every if point.plan}
    facts = [
        reader.sweep,
        reader.criteria,
        reader.evidence and reader.evidence.facts(),
        *(plan.facts() for plan in plans.values()),
    ]
    about = next((each for each in facts if each), None)
    if about is None:
        raise EvaluationError(
            f"{reader.folder} has neither a sweep.json nor evidence nor a plan, so there is nothing to report. "
            f"Make them with: moeits sweep MODEL --output {reader.folder}"
        )
    for name, plan in plans.items():
        if plan.fingerprint != about["fingerprint"]:
            raise EvaluationError(
                f"{reader.folder / name / 'plan.json'} is of another checkpoint ({plan.source}) than the rest of the "
                f"run ({about['source']}). Move it into a run of its own."
            )
    layers = {name: sorted(plan.kept) for name, plan in plans.items()}
    expected = sorted(reader.evidence.layers) if reader.evidence else next(iter(layers.values()), [])
    for name, own in layers.items():
        if own != expected:
            raise EvaluationError(
                f"{reader.folder / name / 'plan.json'} keeps experts in {len(own)} layers, where the rest of the run "
                f"has {len(expected)} MoE layers. Was it edited? Make it again with moeits plan."
            )
    return {key: about[key] for key in ("source", "model_type", "fingerprint")}


def _forecast(reader: "_Reader", about: Mapping[str, str]) -> ForecastFile | None:
    """What was foreseen for the run's model. Raises EvaluationError if it is of another checkpoint."""
    found = reader.file("forecast.json", ForecastFile, "what moeits forecast wrote")
    if found and found["fingerprint"] != about["fingerprint"]:
        raise EvaluationError(
            f"{reader.folder / 'forecast.json'} is of another checkpoint ({found['source']}) than the rest of the run "
            f"({about['source']}). Move it away, or forecast this one."
        )
    return found


def _point_folders(folder: Path) -> Iterator[str]:
    """The folders of models within a run; `.` where the run is itself the folder of one."""
    if (folder / "plan.json").exists():
        yield "."
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any((path / f"{part}.json").exists() for part in PARTS):
            yield path.name


def _with_controls(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points with the random ones given to the model that keeps as many experts in every layer, if there is one."""
    points = list(points)
    chosen = [point for point in points if not point.is_random]
    random = [each for point in points for each in (point, *point.controls) if each.is_random]
    found = []
    for point in points:
        alike = [other for other in chosen if other.counts == point.counts]
        if point.is_random and alike:
            continue
        own = [other for other in random if other.counts == point.counts and other not in point.controls]
        found.append(point if point.is_random else replace(point, controls=(*point.controls, *own)))
    return tuple(found)


class _Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}
        self.left_out: dict[str, MoeitsError] = {}
        self.sweep = read_sweep(folder / "sweep.json") if self._read("sweep.json") else None
        self.criteria = read_criteria(folder / "criteria.json") if self._read("criteria.json") else None
        self.evidence = self._evidence()

    def whole_point(self, name: str) -> Point | None:
        """The model of a folder; None if a file of it is broken, which `left_out` then explains."""
        try:
            return self.point(name)
        except MoeitsError as error:
            self.left_out[name] = error
            return None

    def point(self, name: str) -> Point:
        """The model of a folder, its controls included."""
        path = self.folder / name
        plan = self._plan(f"{name}/plan.json")
        controls = () if name == "." else sorted(path.glob("random-*/plan.json"))
        return Point(
            name=name,
            taus=tuple(
                point["tau"] for point in (self.sweep["points"] if self.sweep else ()) if point["folder"] == name
            ),
            plan=plan,
            summary=self._summary(path / "plan.json", plan) if plan else {},
            unhealed=self._results(f"{name}/unhealed.json"),
            healed=self._results(f"{name}/healed.json"),
            healing=self.file(f"{name}/healing.json", HealingFile, "what moeits heal wrote"),
            refit=self.file(f"{name}/refit.json", RefitFile, "what moeits refit wrote"),
            footprint=self.file(f"{name}/footprint.json", FootprintFile, "what moeits measure wrote"),
            controls=tuple(
                point for control in controls if (point := self.whole_point(f"{name}/{control.parent.name}"))
            ),
        )

    def file(self, name: str, of: type[Typed], what: str) -> Typed | None:
        """A JSON file of the run; None if there is no such file."""
        return read_file(self.folder / name, of, what=what) if self._read(name) else None

    def _results(self, name: str) -> Results | None:
        return Results.load(self.folder / name) if self._read(name) else None

    def _plan(self, name: str) -> PruningPlan | None:
        return PruningPlan.load(self.folder / name) if self._read(name) else None

    def _summary(self, path: Path, plan: PruningPlan) -> dict[str, Any]:
        """Sizes of what the plan keeps: counted anew if there is evidence, for `kept` may have been edited."""
        if self.evidence and set(self.evidence.layers) == set(plan.kept):
            return {**plan.summary, **self.evidence.inventory.summary(plan.counts)}
        missing = [key for key in SIZES if not isinstance(plan.summary.get(key), int | float)]
        if missing:
            raise EvaluationError(
                f"{path} has no {missing[0]} in its summary, and the run has no evidence.safetensors to count it from. "
                "Put the evidence of moeits score there, or make the plan again with moeits plan."
            )
        return dict(plan.summary)

    def _evidence(self) -> Evidence | None:
        name = "evidence.safetensors"
        return Evidence.load(self.folder / name) if self._read(name) else None

    def _read(self, name: str) -> bool:
        """Whether there is such a file; its SHA-256 is noted."""
        path = self.folder / name
        if not path.exists():
            return False
        if not path.is_file():
            raise EvaluationError(f"{path} is not a file. Remove it and make it again.")
        with path.open("rb") as file:
            self.files[name.removeprefix("./")] = hashlib.file_digest(file, "sha256").hexdigest()
        return True


def name_of(point: Point) -> str:
    """What to call a point in a plot: its tau where it is of a sweep, else its folder."""
    return f"tau {point.taus[0]:g}" if point.taus else {".": "this model"}.get(point.name, point.name)


def points_by_line(run: Run) -> dict[str, list[Point]]:
    """Its pruned models by what they are called in a plot, the smallest first; the same counts are one line."""
    together: dict[tuple[tuple[int, int], ...], list[Point]] = {}
    for point in run.points:
        together.setdefault(tuple(point.counts.items()), []).append(point)
    return {", ".join(map(name_of, points)): points for points in together.values()}


def min_experts_of(run: Run) -> int | None:
    """The floor that the run was planned with; None for each layer's top_k."""
    settings = [
        run.sweep["settings"] if run.sweep else None,
        *(point.plan.settings for point in run.points if point.plan),
    ]
    found = next((each for each in settings if each), {}).get("min_experts")
    return found if isinstance(found, int) else None


def criterion_of(run: Run) -> str:
    """Who chose in a run: the criterion of its sweep, else of its first plan that was not made at random."""
    asked = run.sweep["settings"].get("criterion") if run.sweep else None
    planned = (point.plan.criterion for point in run.points if point.plan and not point.is_random)
    name = asked or next(planned, "moeits")
    return name if name in [criterion.name for criterion in CRITERIA] else "moeits"
