"""The JSON and evidence of one or more runs -> one self-contained HTML page, or its tables in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.errors import EvaluationError, SettingError
from moeits.evidence import write_whole
from moeits.report_page import figures
from moeits.report_page.accuracy import metrics_of, rows_of, tasks_of, with_interval
from moeits.report_page.artefacts import Run, read_run
from moeits.report_page.blocks import Section, figure, section, table
from moeits.report_page.markdown import card_with_results, tables
from moeits.report_page.page import render
from moeits.report_page.published import published_section
from moeits.report_page.result_sections import pareto_series
from moeits.report_page.sections import sections_of

FORMATS = ("html", "md")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written."""

    runs: tuple[str, ...]
    nbytes: int | None
    """Of the page or the tables; None if only a card was written."""


def report(
    runs: Sequence[str | Path] | str | Path,
    *,
    output: str | Path | None = None,
    format: str = "html",
    card: str | Path | None = None,
    published: bool = False,
) -> Report:
    """Show one or more runs: on one page that needs no network, or as tables in Markdown.

    `runs` are folders of `moeits sweep`, or folders laid out like one (docs/report.md); only JSON and evidence are
    read. `card` is a checkpoint whose README.md gains the results. `published` adds the paper's own rows, with their
    caveats.

    Raises EvaluationError if a run has nothing to show or a file of it is broken, SettingError for arguments that make
    no sense, OutputError if the result cannot be written, MissingExtra without matplotlib and jinja2.
    """
    if format not in FORMATS:
        raise SettingError(f"--format {format} makes no sense: it is {' or '.join(FORMATS)}.")
    if output is None and card is None:
        raise SettingError("Say where the report goes: --output report.html, or --card CHECKPOINT.")
    read = [read_run(folder) for folder in ([runs] if isinstance(runs, str | Path) else runs)]
    if not read:
        raise SettingError("Name at least one run.")
    if card is not None:
        _write_card(Path(card), read)
    if output is None:
        return Report(runs=tuple(run.name for run in read), nbytes=None)
    extra = [published_section()] if published else []
    content = (_html(read, extra) if format == "html" else tables(read, extra)).encode()
    write_whole(Path(output), content)
    return Report(runs=tuple(run.name for run in read), nbytes=len(content))


def _write_card(checkpoint: Path, runs: Sequence[Run]) -> None:
    path = checkpoint / "README.md"
    if not path.is_file():
        raise EvaluationError(f"{checkpoint} has no README.md, so there is no card to add results to.")
    if not any(rows_of(run) or any(point.footprint for point in run.points) for run in runs):
        raise EvaluationError("These runs have no results to add to a card. Evaluate first: moeits sweep --evaluate.")
    write_whole(path, card_with_results(path.read_text(encoding="utf-8"), runs).encode())


def _html(runs: Sequence[Run], extra: Sequence[Section]) -> str:
    chapters: list[dict[str, Any]] = [
        {"slug": f"run-{number}", "title": run.name, "sections": sections_of(run, f"run-{number}")}
        for number, run in enumerate(runs, 1)
    ]
    if len(runs) > 1:
        chapters.insert(0, {"slug": "all", "title": "Side by side", "sections": [_side_by_side(runs)]})
    if extra:
        chapters.append({"slug": "published", "title": "From the paper", "sections": list(extra)})
    models = dict.fromkeys(run.source.split("@")[0].split("/")[-1] for run in runs)
    return render(" and ".join(models), _lead(runs), chapters)


def _lead(runs: Sequence[Run]) -> list[str]:
    experts = sum(facts.num_experts for run in runs[:1] if run.evidence for facts in run.evidence.layers.values())
    if len(runs) > 1 or not experts:
        return ["Which experts can go, and what that costs."]
    return [f"Which of its {experts:,} experts can go, and what that costs."]


def _side_by_side(runs: Sequence[Run]) -> Section | None:
    """Every run's unpruned model and the point that removes closest to half, and all accuracies against size."""
    rows: list[list[str]] = []
    series: dict[str, list[tuple[float, float, float | None]]] = {}
    what = ""
    for run in runs:
        found = rows_of(run)
        one, what = pareto_series(found, f"{run.name}: ")
        series |= one
        rows += [[run.name, row.label, *_scores(run, row)] for row in found] or [[run.name, "not evaluated", "", ""]]
    blocks = [table("All evaluated models", ["run", "model", "P(down), %", "mean accuracy, %"], rows)]
    if sum(map(len, series.values())) > 1:
        svg = figures.pareto(series, what, "all-pareto")
        blocks.append(figure(svg, "Accuracy against bytes of tensors. Up and to the left is better."))
    return section("runs", "All runs", [], blocks)


def _scores(run: Run, row: Any) -> tuple[str, str]:
    found = rows_of(run)
    tasks = tasks_of(found)
    metric = next(iter(metrics_of(found, tasks)), None)
    reduction = 0.0 if row.kind == "unpruned" else row.point.summary.get("reduction", 0.0)
    return f"{100 * reduction:.2f}", with_interval(row.mean(tasks, metric)) if metric else ""
