"""A comparison of criteria, as a person sees it."""

from typing import Any

from moeits.console import out, table
from moeits.criteria_file import ShownRow, shown_rows
from moeits.sizes import format_size
from moeits.stages.compare_criteria import CriteriaComparison

_COLUMNS = ("choice", "", "loss", "rise", "95 % from", "to", "seconds", "joules", "peak memory", "tokens", "data")


def show_criteria(made: CriteriaComparison, arguments: dict[str, Any]) -> None:
    """The unpruned model first, then a row per choice and state; of random ones the mean, least to most."""
    found = made.found
    text = found["text"]
    assert text is not None, "a comparison ends with the unpruned row"
    rows = shown_rows(found["rows"])
    unpruned = ("unpruned", "", f"{text['nats_per_token']:.4f}", *[""] * (len(_COLUMNS) - 3))
    # A column of dashes would only make a narrow terminal break the lines.
    shown = [each for each in range(len(_COLUMNS)) if _COLUMNS[each] != "joules" or any(row.joules for row in rows)]
    columns, *lines = ([line[each] for each in shown] for line in (_COLUMNS, unpruned, *map(_row, rows)))
    table(columns, lines)
    out(
        f"{found['experts_kept']} of {found['experts_before']} experts kept; loss in nats per token on {text['file']}, "
        f"{text['tokens']:,} tokens of {text['documents']} documents"
    )
    out("Of several seeds: the mean, and in the place of the interval the least and the most of them.")
    out("What a row shares with others (scoring, calibration, tokens of the refit) is charged to it in full.")
    out(f"written: {arguments['output']} (moeits report {arguments['output']} --output report.html)")


def _row(row: ShownRow) -> tuple[str, ...]:
    return (
        row.label,
        f"{row.state} (refit refused)" if row.refused else row.state,
        f"{row.loss:.4f}",
        f"{row.rise:+.4f}",
        f"{row.low:+.4f}",
        f"{row.high:+.4f}",
        f"{row.seconds:.1f}",
        "-" if row.joules is None else f"{row.joules:.0f}",
        "-" if row.peak_bytes is None else format_size(row.peak_bytes),
        f"{row.tokens:,}" if row.tokens else "-",
        ", ".join(row.data) or "-",
    )
