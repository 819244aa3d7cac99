"""What the results show: accuracy against tau and against size, in the paper's tables, and how healing went."""

from collections.abc import Mapping, Sequence
from typing import Any

from moeits.report_page import figures
from moeits.report_page.accuracy import (
    NOTHING,
    Row,
    accuracy_table,
    count,
    evaluation_notes,
    metrics_of,
    perplexity_table,
    rows_of,
    tasks_of,
)
from moeits.report_page.artefacts import Run, name_of
from moeits.report_page.blocks import Block, Section, figure, notes, section, spread, table


def figure_2(run: Run, rows: Sequence[Row], slug: str) -> Section | None:
    """The paper's Figure 2, for a sweep that was evaluated at two points or more."""
    svg = figure_2_of(run, f"{slug}-figure-2", rows)
    caption = "The paper's Figure 2 for this model: what tau costs and what healing gives back. Bands: 95 % intervals."
    return section("figure-2", "Accuracy against tau", [], [figure(svg, caption)]) if svg else None


def figure_2_of(run: Run, name: str, rows: Sequence[Row] | None = None) -> str | None:
    """The plot alone; None if fewer than two points of a sweep were evaluated."""
    rows = rows_of(run) if rows is None else rows
    tasks = tasks_of(rows)
    metric = next(iter(metrics_of(rows, tasks)), None)
    swept = [point for point in (*run.points, run.unpruned) if point.taus and point.summary]
    if metric is None or len({point.name for point in swept if point.unhealed or point.healed}) < 2:
        return None
    scores = {(row.point.name, row.kind): row.mean(tasks, metric) for row in rows}
    unpruned = scores.get(("unpruned", "unpruned"))
    points = [
        {
            "tau": tau,
            "share": point.summary["parameters_after"] / point.summary["parameters_before"],
            "unhealed": scores.get((point.name, "unhealed")) or (unpruned if point is run.unpruned else None),
            "healed": scores.get((point.name, "healed")),
        }
        for point in swept
        for tau in point.taus
    ]
    points.sort(key=lambda point: point["tau"])
    what = f"{metric}, %, " + (f"mean of {len(tasks)} tasks" if len(tasks) > 1 else tasks[0])
    return figures.figure_2(points, unpruned[0] if unpruned else None, what, name)


def accuracy(rows: Sequence[Row]) -> Section | None:
    """The paper's tables, acc and acc_norm both, and what was read of a text."""
    if not rows:
        return None
    tables: list[Block | None] = [accuracy_table(rows, metric) for metric in metrics_of(rows, tasks_of(rows))]
    without = "The unpruned model was not evaluated in this run, so nothing here says what pruning cost."
    intro = [] if any(row.kind == "unpruned" for row in rows) else [without]
    return section("accuracy", "Accuracy", intro, [*tables, perplexity_table(rows), notes(evaluation_notes(rows))])


def against_size(rows: Sequence[Row], slug: str) -> Section | None:
    """Accuracy against bytes of every evaluated model."""
    series, what = pareto_series(rows)
    # Two points show nothing that the table does not.
    if sum(map(len, series.values())) < 3:
        return None
    svg = figures.pareto(series, what, f"{slug}-pareto")
    caption = "Accuracy against bytes of tensors. Up and to the left is better; bars are 95 % intervals."
    return section("pareto", "Accuracy against size", [], [figure(svg, caption)])


def pareto_series(
    rows: Sequence[Row], prefix: str = ""
) -> tuple[dict[str, list[tuple[float, float, float | None]]], str]:
    """(bytes, accuracy, standard error) of every row, by kind and criterion; and what the accuracy is."""
    tasks = tasks_of(rows)
    metric = next(iter(metrics_of(rows, tasks)), None)
    series: dict[str, list[tuple[float, float, float | None]]] = {}
    for row in rows:
        score = row.mean(tasks, metric) if metric else None
        if score and row.nbytes:
            label = row.kind if row.kind == "unpruned" else f"{row.label.split(',')[0].split(' ')[0]}, {row.kind}"
            series.setdefault(prefix + label, []).append((row.nbytes, *score))
    return series, f"{metric}, %" + (f", mean of {len(tasks)} tasks" if len(tasks) > 1 else "")


def healing(run: Run, slug: str) -> Section | None:
    """Training and held-out loss of every healed model, and what each healing took."""
    healed = {name_of(point): point.healing for point in (*run.points, run.unpruned) if point.healing}
    if not healed:
        return None
    curves = {name: curve for name in spread(list(healed), 6) if (curve := _curves(healed[name]))}
    plot = figures.healing_curves(curves, f"{slug}-healing") if curves else None
    caption = "Loss while healing, in nats per token: thin on the training text, dotted on held-out text."
    rows = [
        [
            name,
            f"{each['recipe_name']}, {each['recipe']['steps']} steps",
            count(each["trainable_parameters"]),
            *(NOTHING if each[key] is None else f"{each[key]:.4f}" for key in ("loss_before", "loss_merged")),
            f"{each['seconds']:,.0f}",
        ]
        for name, each in healed.items()
    ]
    columns = ["point", "recipe", "trained parameters", "held-out loss before", "after", "seconds"]
    blocks = [figure(plot, caption) if plot else None, table("What each healing did", columns, rows)]
    said = [note for each in healed.values() for note in each.get("notes", ())]
    return section("healing", "Healing", [], [*blocks, notes(list(dict.fromkeys(said)))])


def _curves(facts: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    found = {
        kind: [(entry["step"], entry["loss"]) for entry in facts.get("curves", {}).get(kind, ())]
        for kind in ("training", "held_out")
    }
    return {kind: points for kind, points in found.items() if points}
