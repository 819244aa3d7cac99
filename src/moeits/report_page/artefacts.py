"""The files of a run: read here and nowhere else, so that every number on a page is a number in a file.

A run is the folder of a sweep, or any folder laid out like one: a folder for each pruned model, with its `plan.json`
and whichever of `unhealed.json`, `healed.json`, `healing.json` and `footprint.json` there are; `unpruned/` beside them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.errors import EvaluationError
from moeits.evidence import Evidence

PARTS = ("plan", "unhealed", "healed", "healing", "footprint", "healed-footprint")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One pruned model of a run, or the unpruned one: what is known of it, as JSON values; None where nothing is."""

    name: str
    taus: tuple[float, ...] = ()
    plan: Mapping[str, Any] | None = None
    unhealed: Mapping[str, Any] | None = None
    healed: Mapping[str, Any] | None = None
    healing: Mapping[str, Any] | None = None
    footprint: Mapping[str, Any] | None = None
    healed_footprint: Mapping[str, Any] | None = None

    @property
    def summary(self) -> Mapping[str, Any]:
        """The summary of its plan: experts, parameters, bytes, P(down); empty without a plan."""
        return (self.plan or {}).get("summary", {})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model and what was made of it."""

    name: str
    source: str
    model_type: str
    fingerprint: str
    evidence: Evidence | None
    sweep: Mapping[str, Any] | None
    ledger: Mapping[str, Any] | None
    unpruned: Point
    points: tuple[Point, ...]
    """By experts kept, the smallest model first."""
    files: Mapping[str, str]
    """Name of each file that was read, within the run -> its SHA-256."""


def read_run(folder: str | Path) -> Run:
    """Read a run. Raises EvaluationError if there is none, or if a file of it is broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"There is no run {folder}. Make one with: moeits sweep MODEL --output {folder}")
    reader = _Reader(folder)
    sweep, evidence = reader.json("sweep.json"), reader.evidence()
    taus = _taus_by_folder(sweep)
    found = {name: reader.point(name, taus.get(name, ())) for name in _point_folders(folder)}
    unpruned = found.pop("unpruned", Point(name="unpruned"))
    points = sorted(
        (point for point in found.values() if point.plan), key=lambda point: point.summary.get("experts_kept", 0)
    )
    about = sweep or (evidence.facts() if evidence else None) or next((p.plan for p in points), None)
    if about is None:
        raise EvaluationError(
            f"{folder} has neither a sweep.json nor evidence nor a plan, so there is nothing to report. "
            f"Make them with: moeits sweep MODEL --output {folder}"
        )
    return Run(
        name=folder.resolve().name,
        source=about["source"],
        model_type=about["model_type"],
        fingerprint=about["fingerprint"],
        evidence=evidence,
        sweep=sweep,
        ledger=reader.json("ledger.json"),
        unpruned=unpruned,
        points=tuple(points),
        files=reader.files,
    )


def _point_folders(folder: Path) -> Iterator[str]:
    """The folders of models within a run; `.` where the run is itself the folder of one."""
    if (folder / "plan.json").exists():
        yield "."
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any((path / f"{part}.json").exists() for part in PARTS):
            yield path.name


def _taus_by_folder(sweep: Mapping[str, Any] | None) -> dict[str, tuple[float, ...]]:
    taus: dict[str, tuple[float, ...]] = {}
    for point in (sweep or {}).get("points", ()):
        taus[point["folder"]] = (*taus.get(point["folder"], ()), point["tau"])
    return taus


class _Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}

    def point(self, name: str, taus: tuple[float, ...]) -> Point:
        parts = {part.replace("-", "_"): self.json(f"{name}/{part}.json") for part in PARTS}
        return Point(name=name, taus=taus, **parts)

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the run; None if there is no such file."""
        path = self.folder / name
        if not path.exists():
            return None
        content = path.read_bytes()
        try:
            value = json.loads(content)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise EvaluationError(f"{path} is broken ({error}). Remove it and make it again.") from None
        self.files[name.removeprefix("./")] = hashlib.sha256(content).hexdigest()
        return value

    def evidence(self) -> Evidence | None:
        path = self.folder / "evidence.safetensors"
        if not path.exists():
            return None
        self.files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return Evidence.load(path)


def name_of(point: Point) -> str:
    """What to call a point in a plot: its tau where it is of a sweep."""
    return f"tau {point.taus[0]:g}" if point.taus else point.name


def min_experts_of(run: Run) -> int | None:
    """The floor that the run was planned with; None for each layer's top_k."""
    asked_by = run.sweep or next((point.plan for point in run.points if point.plan), None) or {}
    return asked_by.get("settings", {}).get("min_experts")
