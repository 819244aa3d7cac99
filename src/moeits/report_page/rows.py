"""Evaluated models as rows, the unpruned one always first; and which of them were asked the same."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

from moeits.evaluation.results import Results
from moeits.report_page.artefacts import Point, Run

Score = tuple[float, float | None]
"""A number and its standard error, None where there is none."""

TEXT = "held-out text"
_MARKS = "*\N{DAGGER}\N{DOUBLE DAGGER}\N{SECTION SIGN}\N{PILCROW SIGN}"


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
        """What it is one of, in a plot: unpruned, or MoEITS or random, un-healed or healed."""
        if self.kind == "unpruned":
            return "unpruned"
        chosen = "unpruned" if self.point.name == "unpruned" else _chosen_by(self.point)
        return f"{chosen}, {'healed' if self.kind == 'healed' else 'un-healed'}"

    @property
    def reduction(self) -> float:
        """P(down): the share of routed-expert parameters removed."""
        return 0.0 if self.point.name == "unpruned" else self.point.summary.get("reduction", 0.0)


def rows_of(run: Run) -> list[Row]:
    """Every evaluated model of a run: the unpruned one, then the largest to the smallest, each before its controls."""
    rows = []
    for point in (run.unpruned, *reversed(run.points)):
        for each in (point, *point.controls):
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
    return {"moeits": "MoEITS"}.get(criterion, criterion)


def tasks_of(rows: Iterable[Row]) -> list[str]:
    """The tasks that any of the models was evaluated on, in the order of their first appearance."""
    return list(dict.fromkeys(task for row in rows for task in row.results.tasks))


def metrics_of(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """Of acc and acc_norm those that some task has; else the first metric that comes with a standard error."""
    found = [row.results.tasks.get(task, {}) for row in rows for task in tasks]
    usual = [name for name in ("acc", "acc_norm") if any(each.get(name) is not None for each in found)]
    other = [name.removesuffix("_stderr") for each in found for name in each if name.endswith("_stderr")]
    return usual or other[:1]


# ------------------------------------------------------------------------------------------------ the same question


class Questions:
    """What the first model was asked, task by task; who was asked otherwise is marked, and never drawn beside it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    @cached_property
    def first(self) -> dict[str, Row]:
        """Task, or `TEXT` -> the first row that answers it."""
        found: dict[str, Row] = {}
        for row in self._rows:
            for task in _asked(row):
                found.setdefault(task, row)
        return found

    @cached_property
    def _others(self) -> dict[tuple[str, Any], str]:
        """Every question that is not the first of its task -> its mark."""
        asked = dict.fromkeys((task, _question(row, task)) for row in self._rows for task in _asked(row))
        others = [each for each in asked if each[1] != _question(self.first[each[0]], each[0])]
        return {each: _MARKS[i % len(_MARKS)] * (1 + i // len(_MARKS)) for i, each in enumerate(others)}

    def mark(self, row: Row, task: str) -> str:
        """A sign to be put behind a number that is not comparable with the others; else nothing."""
        mark = self._others.get((task, _question(row, task))) if task in _asked(row) else None
        return f" {mark}" if mark else ""

    def alike(self) -> list[Row]:
        """The rows that were asked what the first ones were."""
        return [row for row in self._rows if not any(self.mark(row, task) for task in _asked(row))]

    def notes(self) -> list[str]:
        """What each mark means."""
        return [
            f"{mark} {task}: {in_words(question)}. Another question than that of the other rows, so its numbers are "
            "not comparable with theirs, and are in no plot."
            for (task, question), mark in self._others.items()
        ]


def _asked(row: Row) -> list[str]:
    return [*row.results.tasks, *([TEXT] if row.results.perplexity else [])]


def _question(row: Row, task: str) -> tuple[tuple[str, Any], ...]:
    """All that two rows must share for their numbers to be of the same question, as pairs of name and value."""
    if task == TEXT:
        found = row.results.perplexity or {}
        return tuple((key, found.get(key)) for key in ("file", "sha256", "window_tokens"))
    found = row.results.tasks[task]
    samples = found.get("n_samples") or {}
    files = tuple(sorted((found.get("files") or {}).items()))
    return (
        ("num_fewshot", found.get("num_fewshot")),
        ("effective", samples.get("effective")),
        ("original", samples.get("original")),
        ("version", found.get("version")),
        ("files", files),
    )


def in_words(question: Iterable[tuple[str, Any]]) -> str:
    """`15-shot, 400 of 2376 items`; of a text its name and window."""
    found = dict(question)
    if "file" in found:
        window = f", windows of {found['window_tokens']} tokens" if found["window_tokens"] else ""
        return f"{found['file']}{window}" + (f", SHA-256 {found['sha256'][:12]}" if found["sha256"] else "")
    return f"{found['num_fewshot']}-shot, {found['effective']} of {found['original']} items"


def question_in_words(row: Row, task: str) -> str:
    """What a row was asked under the name of a task."""
    return in_words(_question(row, task))


# ------------------------------------------------------------------------------------------------ what a plot shows


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something that models are judged by, in the unit of a plot."""

    word: str
    short: str
    """For an axis."""
    of: Callable[[Row], Score | None]
    form: str
    """How a value is written, with its unit."""
    tasks: tuple[str, ...]
    metric: str
    chance: float | None = None


def measures_of(rows: Sequence[Row], tasks: Sequence[str] | None = None) -> list[Measure]:
    """The mean accuracy over these tasks (by default all), if there are any, and the held-out loss, if there is one."""
    tasks = tasks_of(rows) if tasks is None else tasks
    metric = next(iter(metrics_of(rows, tasks)), None)
    found = [_accuracy(rows, tasks, metric)] if metric else []
    if any(row.nats for row in rows):
        found.append(
            Measure(
                word=f"loss on {TEXT}, nats per token",
                short="loss, nats per token",
                of=lambda row: row.nats,
                form="{:.3f}",
                tasks=(TEXT,),
                metric="nats_per_token",
            )
        )
    return found


def _accuracy(rows: Sequence[Row], tasks: Sequence[str], metric: str) -> Measure:
    def percent(row: Row) -> Score | None:
        score = row.mean(tasks, metric)
        return score and (100 * score[0], None if score[1] is None else 100 * score[1])

    chances = [next((c for row in rows if (c := _chance(row, task)) is not None), None) for task in tasks]
    known = [chance for chance in chances if chance is not None]
    return Measure(
        word=f"{metric}, %" + (f", mean of {len(tasks)} tasks" if len(tasks) > 1 else f", {tasks[0]}"),
        short=f"{metric}, %",
        of=percent,
        form="{:.1f}",
        tasks=tuple(tasks),
        metric=metric,
        chance=100 * sum(known) / len(tasks) if len(known) == len(tasks) else None,
    )


def _chance(row: Row, task: str) -> float | None:
    found: Mapping[str, Any] = row.results.tasks.get(task, {})
    return found.get("chance")
