"""Sweeps, footprints and reports, as a person sees them."""

from typing import Any

from moeits.console import out, table
from moeits.report import Report
from moeits.sizes import format_size
from moeits.sweep import Sweep


def show_sweep(found: Sweep, arguments: dict[str, Any]) -> None:
    """A row per tau: experts, parameters, bytes, P(down)."""
    rows = (
        (
            f"{point.tau:g}",
            str(point.summary["experts_kept"]),
            f"{min(point.kept.values())} to {max(point.kept.values())}",
            f"{point.summary['parameters_after']:,}",
            format_size(point.summary["bytes_after"]),
            f"{point.summary['reduction']:.2%}",
        )
        for point in found.points
    )
    table(("tau", "experts kept", "per layer", "parameters", "bytes", "P(down)"), rows)
    out(f"written: {arguments['output']} (moeits report {arguments['output']} --output report.html)")


def show_report(made: Report, arguments: dict[str, Any]) -> None:
    """Where the page is, and how large."""
    out(f"written: {arguments['output']} ({format_size(made.nbytes)}, {len(made.runs)} run{'s'[: len(made.runs) > 1]})")
