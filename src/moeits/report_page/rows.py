"""Evaluated models as rows, the unpruned one always first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from moeits.choosing.criteria import shown_name
from moeits.evaluation.results import Results
from moeits.report_page.artefacts import Point, Run

Score = tuple[float, float | None]
"""A number and its standard error, None where there is none."""

TEXT = "held-out text"
HEALED = ", healed"
"""At the end of what a healed model is called in a plot."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One evaluated model."""

    label: str
    kind: str
    """unpruned, unhealed or healed"""
    point: Point
    results: Results

    def score(self, task: str, metric: str) -> Score | None:
        """A metric of a task, None if it was not measured."""
        found = self.results.tasks.get(task, {})
        return (found[metric], found.get(f"{metric}_stderr")) if found.get(metric) is not None else None

    def mean(self, tasks: Sequence[str], metric: str) -> Score | None:
        """The plain mean over tasks; its standard error as of independent tasks. None if a task is missing."""
        scores = [self.score(task, metric) for task in tasks]
        if not tasks or any(score is None for score in scores):
            return None
        values = [score for score in scores if score is not None]
        errors = [error for _, error in values if error is not None]
        spread = sqrt(sum(error**2 for error in errors)) / len(values) if len(errors) == len(values) else None
        return sum(value for value, _ in values) / len(values), spread

    @property
    def nats(self) -> Score | None:
        """Nats per token on the text; None if it read none."""
        return (self.results.perplexity["nats_per_token"], None) if self.results.perplexity else None

    @property
    def nbytes(self) -> int | None:
        """Bytes of tensors of the model that was evaluated."""
        return self.results.model.get("bytes")

    @property
    def series(self) -> str:
        """What it is one of, in a plot: unpruned, or MoEITS or random, healed or not."""
        if self.kind == "unpruned":
            return "unpruned"
        chosen = "unpruned" if self.point.name == "unpruned" else _chosen_by(self.point)
        return f"{chosen}{HEALED if self.kind == 'healed' else ''}"

    @property
    def chosen_by(self) -> str:
        """What its criterion is called."""
        return _chosen_by(self.point)

    @property
    def reduction(self) -> float:
        """P(down): the share of routed-expert parameters removed."""
        return 0.0 if self.point.name == "unpruned" else self.point.summary.get("reduction", 0.0)


def rows_of(run: Run) -> list[Row]:
    """Every evaluated model of a run: the unpruned one, then the largest to the smallest, each before its controls."""
    rows, met = [], set()
    for point in (run.unpruned, *reversed(run.points)):
        for each in (point, *point.controls):
            if each in met:  # a random choice is the control of every model of its size
                continue
            met.add(each)
            for kind, results in (("unhealed", each.unhealed), ("healed", each.healed)):
                if results:
                    is_source = each is run.unpruned and kind == "unhealed"
                    label = _label(each, run) + (", healed" if kind == "healed" else "")
                    row = Row(label=label, kind="unpruned" if is_source else kind, point=each, results=results)
                    rows.append(row)
    return rows


def groups_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that are one but for the seed of a random choice, together; in their order otherwise."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        counts = tuple(row.point.counts.items())
        key = (counts, row.kind) if row.point.is_random else (row.point.name, row.kind, row.label)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def group_label(group: Sequence[Row]) -> str:
    """What to call a group: its only row's name, or the random choices with their number."""
    if len(group) == 1:
        return group[0].label
    healed = ", healed" if group[0].kind == "healed" else ""
    return f"random {group[0].point.summary['experts_kept']}, {len(group)} seeds{healed}"


def _label(point: Point, run: Run) -> str:
    """`MoEITS 46`, where 46 experts stay; `random 46, seed 0`."""
    if point is run.unpruned:
        return "unpruned"
    return f"{_chosen_by(point)} {point.summary['experts_kept']}" + (f", {seed_of(point)}" if point.is_random else "")


def seed_of(point: Point) -> str:
    """`seed 0` of a random choice; else nothing."""
    return f"seed {point.plan.settings.get('seed', '?')}" if point.plan and point.is_random else ""


def _chosen_by(point: Point) -> str:
    criterion = point.plan.criterion if point.plan else "moeits"
    return {"moeits": "MoEITS"}.get(criterion, shown_name(criterion))


def tasks_of(rows: Iterable[Row]) -> list[str]:
    """The tasks that any of the models was evaluated on, in the order of their first appearance."""
    return list(dict.fromkeys(task for row in rows for task in row.results.tasks))


def metrics_of(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """Of acc and acc_norm those that some task has; else the first metric that comes with a standard error."""
    found = [row.results.tasks.get(task, {}) for row in rows for task in tasks]
    usual = [name for name in ("acc", "acc_norm") if any(each.get(name) is not None for each in found)]
    other = [name.removesuffix("_stderr") for each in found for name in each if name.endswith("_stderr")]
    return usual or other[:1]
