"""A sweep, as a person sees it: what each tau leaves, and what it still knows, beside chance."""

from collections.abc import Iterator, Sequence
from typing import Any

from moeits.console import out, table, written
from moeits.report_page.artefacts import read_run
from moeits.report_page.measures import Measure, measures_of
from moeits.report_page.questions import Questions
from moeits.report_page.rows import Row, rows_of
from moeits.sizes import format_size
from moeits.stages.sweep import Sweep, SweepPoint

_NOTHING = "-"


def show_sweep(swept: Sweep, arguments: dict[str, Any]) -> None:
    """A row per tau: experts, parameters, bytes, P(down); then what was measured of each, and of random choices."""
    columns = ("tau", "experts kept", "per layer", "parameters", "bytes", "P(down)")
    table(columns, map(_size_row, swept.points))
    rows = Questions(rows_of(read_run(arguments["output"]))).alike()
    for measure in measures_of(rows):
        out("")
        out(f"{measure.word}:")
        table(("tau", "pruned", "random choices", "pruned - random", "healed"), _measured(measure, swept, rows))
    written(arguments)
    out(f"For a page of it: moeits report {arguments['output']} --output report.html")


def _size_row(point: SweepPoint) -> tuple[str, ...]:
    counts = sorted(point.kept.values())
    return (
        f"{point.tau:g}",
        str(point.summary["experts_kept"]),
        f"{counts[0]} to {counts[-1]}",
        f"{point.summary['parameters_after']:,}",
        format_size(point.summary["bytes_after"]),
        f"{point.summary['reduction']:.2%}",
    )


def _measured(measure: Measure, swept: Sweep, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """The unpruned model, then a row per tau at which something was measured."""
    for row in rows:
        if row.kind == "unpruned" and (score := measure.of(row)):
            yield ("unpruned", measure.form.format(score[0]), _NOTHING, _NOTHING, _NOTHING)
    for point in swept.points:
        own = [row for row in rows if row.point.name == point.folder and row.kind != "unpruned"]
        pruned, healed = (_values(measure, [row for row in own if row.kind == kind]) for kind in ("unhealed", "healed"))
        controls = [control for row in own for control in row.point.controls]
        chance = _values(measure, [row for row in rows if row.point in controls and row.kind == "unhealed"])
        if pruned or healed:
            yield (
                f"{point.tau:g}",
                _one(measure, pruned),
                *_beside_chance(measure, pruned, chance),
                _one(measure, healed),
            )


def _values(measure: Measure, rows: Sequence[Row]) -> list[float]:
    return [score[0] for row in rows if (score := measure.of(row))]


def _one(measure: Measure, values: Sequence[float]) -> str:
    return measure.form.format(values[0]) if values else _NOTHING


def _beside_chance(measure: Measure, pruned: Sequence[float], chance: Sequence[float]) -> tuple[str, str]:
    """The mean over seeds with the lowest and the highest, and how far the choice is from that mean."""
    if not chance:
        return _NOTHING, _NOTHING
    mean = sum(chance) / len(chance)
    shown = measure.form.format(mean)
    if len(chance) > 1:
        shown += f" ({measure.form.format(min(chance))} to {measure.form.format(max(chance))})"
    return shown, measure.form.replace("{:", "{:+").format(pruned[0] - mean) if pruned else _NOTHING
