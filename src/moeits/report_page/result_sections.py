"""What the results show: accuracy against tau and against size, in the paper's tables, and how healing went."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from moeits.report_page import figures
from moeits.report_page.accuracy import (
    INTERVAL,
    NOTHING,
    accuracy_table,
    against_random,
    count,
    difference_table,
    evaluation_notes,
    text_table,
)
from moeits.report_page.artefacts import Point, Run, name_of, points_by_line
from moeits.report_page.blocks import Block, Section, few_of, figure, notes, section, spread, table
from moeits.report_page.differences import Pairing
from moeits.report_page.drawing import colours_of
from moeits.report_page.measures import Measure, measures_of, what_is_shown
from moeits.report_page.questions import Questions
from moeits.report_page.rows import HEALED, TEXT, Row, groups_of, metrics_of, seed_of, tasks_of

_CURVES = "Loss while healing, in nats per token; at step 0 that of the pruned model."
_CONTROL = "Random choices of the same size are drawn as the mean over their seeds, from the lowest to the highest."


def figure_2(run: Run, rows: Sequence[Row], slug: str) -> Section | None:
    """The paper's Figure 2, for a sweep that was evaluated at two points or more."""
    draw = figure_2_of(run, f"{slug}-figure-2", rows)
    if draw is None:
        return None
    shown = " and ".join(measure.word for measure in measures_of(rows))
    caption = f"The paper's Figure 2 for this model: {shown}, against tau. Bands: 95 % intervals."
    random = any(point.controls for point in run.points)
    missing = "No random choice of the same size was evaluated, so this does not show what the method adds to chance."
    blocks = [figure(draw, f"{caption} {_CONTROL if random else missing}")]
    return section("figure-2", f"{what_is_shown(rows)} against tau", [], blocks)


def figure_2_of(run: Run, name: str, rows: Sequence[Row]) -> Callable[[], str] | None:
    """What draws the plot; None if fewer than two points of a sweep were evaluated."""
    rows = Questions(rows).alike()
    swept = {point.name: point for point in (*run.points, run.unpruned) if point.taus and point.summary}
    panels = [_panel(measure, rows, swept) for measure in measures_of(rows)]
    panels = [panel for panel in panels if len({x for spots in panel.curves.values() for x, *_ in spots}) > 1]
    left = [
        (tau, 100 * point.summary["parameters_after"] / point.summary["parameters_before"])
        for point in swept.values()
        for tau in point.taus
    ]
    styles = figures.styles_of([row.series for row in rows] + [label for panel in panels for label in panel.curves])
    return partial(figures.figure_2, panels, left, styles, name) if panels else None


def _panel(measure: Measure, rows: Sequence[Row], swept: Mapping[str, Point]) -> figures.Panel:
    """The curves of a measure over the taus of the sweep; where a tau keeps everything they meet the unpruned model."""
    curves: dict[str, list[figures.Spot]] = {}
    criterion = next((row.chosen_by for row in rows if row.point.plan and not row.point.is_random), "MoEITS")
    curve = partial(_curve_of, criterion=criterion)
    for point in swept.values():
        own = [row for row in rows if row.point is point or row.point in point.controls]
        for label in dict.fromkeys(map(curve, own)):
            spot = spot_of(measure, [row for row in own if curve(row) == label])
            curves.setdefault(label, []).extend((tau, *spot) for tau in point.taus if spot)
    unpruned = [row for row in rows if row.kind == "unpruned"]
    spot = spot_of(measure, unpruned)
    return figures.Panel(
        what=measure.short,
        curves={label: spots for label, spots in curves.items() if spots},
        unpruned=(0.0, *spot) if spot else None,
        chance=measure.chance,
    )


def _curve_of(row: Row, criterion: str) -> str:
    """The curve that a row is on: a tau that keeps everything is a point of the same curves as the others."""
    if row.point.name != "unpruned":
        return row.series
    return criterion if row.kind == "unpruned" else f"{criterion}{HEALED}"


def spot_of(measure: Measure, rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """A row's score with its 95 % interval; of several the mean, from the lowest to the highest."""
    scores = [score for row in rows if (score := measure.of(row))]
    if not scores:
        return None
    if len(scores) == 1:
        value, half = scores[0][0], 1.96 * (scores[0][1] or 0.0)
        return value, value - half, value + half
    values = [value for value, _ in scores]
    return sum(values) / len(values), min(values), max(values)


def accuracy(rows: Sequence[Row], pairs: Pairing) -> Section | None:
    """The paper's tables, acc and acc_norm both, what was read of a text, and each model against the unpruned one."""
    if not rows:
        return None
    questions = Questions(rows)
    tables: list[Block | None] = []
    for metric in metrics_of(rows, tasks_of(rows)):
        tables += accuracy_table(rows, metric, questions)
        tables += [*difference_table(pairs, metric), *against_random(pairs, metric)]
    tables += text_table(rows, questions)
    tables += [*difference_table(pairs, "nats_per_token"), *against_random(pairs, "nats_per_token")]
    without = "The unpruned model was not evaluated in this run, so nothing here says what pruning cost."
    intro = [] if any(row.kind == "unpruned" for row in rows) else [without]
    shown = [cell for each in tables if each for row in each["rows"] for cell in row]
    interval = [INTERVAL] if any("±" in cell or "[" in cell for cell in shown) else []
    small_print = [*evaluation_notes(rows, questions), *interval, *pairs.why_not()]
    return section("accuracy", what_is_shown(rows), intro, [*tables, notes(small_print)])


def against_size(rows: Sequence[Row], slug: str) -> Section | None:
    """Accuracy and loss against bytes of every evaluated model."""
    plots = pareto_plots({"": rows}, f"{slug}-pareto")
    return section("pareto", f"{what_is_shown(rows)} against size", [], plots) if plots else None


def pareto_plots(runs: Mapping[str, Sequence[Row]], name: str) -> list[Block]:
    """A plot for each measure that all runs have in common; colours are of runs if there are several."""
    alike = {run: Questions(rows).alike() for run, rows in runs.items()}
    together = Questions([row for rows in alike.values() for row in rows])
    common = common_tasks(runs)
    styles = figures.styles_of([row.series for rows in runs.values() for row in rows])
    plots = []
    for number, measure in enumerate(measures_of(together.alike(), common)):
        series: dict[str, tuple[figures.Style, list[figures.Spot]]] = {}
        for order, (run, rows) in enumerate(alike.items()):
            for row, *others in groups_of(rows):
                spot = spot_of(measure, [row, *others])
                if spot and row.nbytes and not any(together.mark(row, task) for task in measure.tasks):
                    style = figures.of_run(styles[row.series], order) if len(runs) > 1 else styles[row.series]
                    label = f"{run}: {row.series}" if len(runs) > 1 else row.series
                    series.setdefault(label, (style, []))[1].append((row.nbytes, *spot))
        # Two points show nothing that the table does not.
        if sum(len(spots) for _, spots in series.values()) >= 3:
            better = "Up" if measure.metric != "nats_per_token" else "Down"
            draw = partial(figures.pareto, series, measure.short, better, f"{name}-{number}")
            bars = "Bars are 95 % intervals, of random choices from the lowest to the highest."
            plots.append(figure(draw, f"{measure.shown}, against bytes. {better} and to the left is better. {bars}"))
    return plots


def common_tasks(runs: Mapping[str, Sequence[Row]]) -> list[str]:
    """The tasks that every run which has any was asked, and in the same way."""
    together = Questions([row for rows in runs.values() for row in rows])

    def asked(rows: Sequence[Row], task: str) -> bool:
        return any(task in row.results.tasks and not together.mark(row, task) for row in rows)

    evaluated = [rows for rows in runs.values() if tasks_of(rows)]
    return [task for task in together.first if task != TEXT and all(asked(rows, task) for rows in evaluated)]


def healing(run: Run, slug: str) -> Section | None:
    """Training and held-out loss of every healed model, and what each healing took."""
    points = [point for point in (run.unpruned, *reversed(run.points)) if point.healing]
    healed = {name_of(point): point.healing for point in points if point.healing}
    if not healed:
        return None
    curves = {name: curve for name in spread(list(healed), 5) if (curve := _curves(healed[name]))}
    lines = points_by_line(run)
    colours = {name_of(p): colour for line, colour in colours_of(list(lines)).items() for p in lines[line]}
    colours |= {name: figures.INK for name in curves if name not in colours}
    plot = figure(partial(figures.healing_curves, curves, colours, f"{slug}-healing"), _CURVES) if curves else None
    groups = [
        [_healing_row(name_of(point), point.healing)]
        + [
            _healing_row(f"{name_of(point)}, random, {seed_of(each)}", each.healing)
            for each in point.controls
            if each.healing
        ]
        for point in points
        if point.healing
    ]
    recipes = {row[-1] for rows in groups for row in rows}
    caption = "What each healing did; loss on held-out text, nats per token"
    columns = ["point", "before", "after", "seconds", "trained parameters", "recipe"]
    if len(recipes) == 1:  # a column of one and the same word is wider than it is worth
        caption, columns = f"{caption}; recipe {recipes.pop()}", columns[:-1]
        groups = [[row[:-1] for row in rows] for rows in groups]
    few, thinned = few_of(groups)
    tables = [table(caption, columns, few, thinned=thinned)]
    if thinned:
        tables.append(table(f"{caption}: all", columns, [row for rows in groups for row in rows], folded=True))
    said = [note for each in healed.values() for note in each.get("notes") or ()]
    return section("healing", "Healing", [], [plot, *tables, notes(list(dict.fromkeys(said)))])


def _healing_row(name: str, facts: Mapping[str, Any]) -> list[str]:
    losses = (facts.get(key) for key in ("loss_before", "loss_merged"))
    return [
        name,
        *(NOTHING if loss is None else f"{loss:.3f}" for loss in losses),
        f"{facts['seconds']:,.0f}",
        count(facts["trainable_parameters"]),
        f"{facts['recipe_name']}, {facts['recipe']['steps']} steps",
    ]


def _curves(facts: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    curves = facts.get("curves") or {}
    found = {
        kind: [(entry["step"], entry["loss"]) for entry in curves.get(kind) or ()] for kind in ("training", "held_out")
    }
    before = facts.get("loss_before")
    if before is not None and not any(step == 0 for step, _ in found["held_out"]):
        found["held_out"].insert(0, (0, before))
    return {kind: points for kind, points in found.items() if points}
