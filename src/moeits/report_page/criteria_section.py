"""Several criteria at one size: a table with the cost of each row, and a plot of what each choice loses."""

from collections.abc import Sequence
from functools import partial

from moeits.criteria_file import CriteriaFile, ShownRow, shown_rows
from moeits.report_page import figures
from moeits.report_page.accuracy import NOTHING
from moeits.report_page.blocks import Section, figure, notes, section, table
from moeits.report_page.decision import signed
from moeits.sizes import format_size

_COLUMNS = ("choice", "state", "loss", "rise", "95 %", "seconds", "joules", "peak memory", "tokens", "data")


def criteria_compared(found: CriteriaFile, slug: str) -> Section | None:
    """The unpruned model first, then a row per choice and state; of a run that was stopped a sentence."""
    rows, text = shown_rows(found["rows"]), found["text"]
    if text is None:
        return section("rows", "Criteria at one size", ["The comparison has not been finished: run it again."], [])
    unpruned = ["unpruned", "", f"{text['nats_per_token']:.3f}", *[NOTHING] * (len(_COLUMNS) - 3)]
    data = {", ".join(row.data) for row in rows if row.data}
    # A column that says one thing in every row makes others go out of sight.
    said_once = {"joules": not any(row.joules for row in rows), "data": len(data) < 2}
    shown = [number for number, column in enumerate(_COLUMNS) if not said_once.get(column)]
    columns, *lines = ([line[each] for each in shown] for line in (_COLUMNS, unpruned, *map(_cells, rows)))
    caption = (
        f"Loss of {found['source']} with {found['experts_kept']} of {found['experts_before']} experts, nats per token, "
        "and its rise over the unpruned model"
    )
    said = [
        f"Judged on {text['file']}, {text['tokens']:,} tokens of {text['documents']} documents in windows of "
        f"{text['window_tokens']}. All choices keep as many experts in every layer. Intervals are paired, by a "
        "bootstrap over documents; of several seeds the mean is shown, with the least and the most of them.",
    ]
    small = [
        "Costs are of making a row; what it shares with others (scoring, calibration, the tokens of the refit) is "
        "charged to each in full. Peak memory is the process's, with what it holds of earlier work.",
    ]
    if len(data) == 1:
        small.append(f"Data of the tokens: {data.pop()}.")
    if any(row.refused for row in rows):
        small.append(
            "refit refused: the loss did not fall for certain on tokens that took no part, so no weight was changed."
        )
    plot = figure(
        partial(figures.criteria, rows, f"{slug}-criteria"),
        "Rise of the loss over the unpruned model; to the left is better. Bars are 95 % intervals, of several seeds "
        "the least to the most.",
    )
    blocks = [plot, table(caption, columns, lines, strong=[0]), notes(small)]
    return section("rows", "Criteria at one size", said, blocks)


def _cells(row: ShownRow) -> Sequence[str]:
    return [
        row.label,
        f"{row.state} (refit refused)" if row.refused else row.state,
        f"{row.loss:.3f}",
        signed(row.rise, 3),
        f"{signed(row.low, 3)} to {signed(row.high, 3)}",
        f"{row.seconds:,.1f}",
        NOTHING if row.joules is None else f"{row.joules:,.0f}",
        NOTHING if row.peak_bytes is None else format_size(row.peak_bytes),
        f"{row.tokens:,}" if row.tokens else NOTHING,
        ", ".join(row.data) or NOTHING,
    ]
