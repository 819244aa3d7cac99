"""Several runs beside each other: all their models in one table, and in one plot, on the tasks that they share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from moeits.errors import EvaluationError
from moeits.report_page.accuracy import NOTHING, percent
from moeits.report_page.artefacts import Run
from moeits.report_page.blocks import SHOWN, Section, section, spread, table
from moeits.report_page.measures import measures_of
from moeits.report_page.questions import Questions
from moeits.report_page.result_sections import common_tasks, pareto_plots, spot_of
from moeits.report_page.rows import Row, group_label, groups_of, rows_of, tasks_of


def with_own_names(runs: Sequence[Run]) -> list[Run]:
    """The runs, those of one name numbered."""
    twice = {name for name, times in Counter(run.name for run in runs).items() if times > 1}
    met: Counter[str] = Counter()
    named = []
    for run in runs:
        met[run.name] += 1
        named.append(replace(run, name=f"{run.name} ({met[run.name]})") if run.name in twice else run)
    return named


def check_comparable(runs: Sequence[Run]) -> None:
    """Runs with results share a task or a text that was asked in the same way. Raises EvaluationError."""
    evaluated = {run.name: asked for run in runs if (asked := Questions(rows_of(run)).asked())}
    if len(evaluated) < 2:
        return
    (name, first), *others = evaluated.items()
    for other, asked in others:
        if not set(first) & set(asked):
            mine, theirs = ("; ".join(map(", ".join, each)) for each in (first, asked))
            raise EvaluationError(
                f"{name} and {other} cannot be compared, for they share no task and no text that was asked in the same "
                f"way ({mine} against {theirs}). Evaluate both alike, or report each by itself."
            )


def side_by_side(runs: Sequence[Run]) -> Section | None:
    """Every evaluated model of every run, by what all of them were asked, and plots of that against size."""
    rows = {run.name: rows_of(run) for run in runs}
    tasks = common_tasks(rows)
    together = Questions([row for each in rows.values() for row in each])
    measures = measures_of(together.alike(), tasks)
    columns = ["run", "model", *(measure.short for measure in measures), "P(down), %"]

    def line(run: str, group: Sequence[Row]) -> list[str]:
        same = not any(together.mark(group[0], task) for measure in measures for task in measure.tasks)
        spots = [spot_of(measure, group) if same else None for measure in measures]
        values = [
            measure.form.format(spot[0]) if spot else NOTHING for measure, spot in zip(measures, spots, strict=True)
        ]
        return [run, group_label(group), *values, percent(group[0].reduction)]

    lines = {name: _by_point(found) for name, found in rows.items()}
    few = [line(name, group) for name, points in lines.items() for point in spread(points, SHOWN) for group in point]
    every = [line(name, group) for name, points in lines.items() for point in points for group in point]
    empty = [[name, "not evaluated", *[NOTHING] * len(measures), NOTHING] for name, found in rows.items() if not found]
    caption = "; ".join(["All evaluated models", *(measure.word for measure in measures)])
    thinned = len(few) < len(every)
    tables = [table(caption, columns, [*few, *empty], words=2, thinned=thinned)]
    if thinned:
        tables.append(table(f"{caption}: all points", columns, every, words=2, folded=True))
    plots = pareto_plots({name: each for name, each in rows.items() if each}, "all-pareto")
    asked = tasks_of([row for each in rows.values() for row in each])
    left_out = [task for task in asked if task not in tasks]
    intro = [f"Not shown here, for not all runs were asked the same: {', '.join(left_out)}."] if left_out else []
    return section("runs", "All runs", intro, [*tables, *plots])


def _by_point(rows: Sequence[Row]) -> list[list[list[Row]]]:
    """Groups of rows, those of one point together."""
    return [list(groups) for _, groups in groupby(groups_of(rows), key=lambda group: group[0].point.counts)]
