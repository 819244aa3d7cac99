"""The JSON and evidence of one or more runs -> one self-contained HTML page, or the tables alone in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.errors import SettingError
from moeits.evidence import write_whole
from moeits.report_page.artefacts import Run, read_run
from moeits.report_page.page import render
from moeits.report_page.sections import sections_of

FORMATS = ("html", "md")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written."""

    runs: tuple[str, ...]
    format: str
    nbytes: int


def report(runs: Sequence[str | Path] | str | Path, *, output: str | Path, format: str = "html") -> Report:
    """Write one page about one or more runs."""
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    if format not in FORMATS:
        raise SettingError(f"--format {format} makes no sense: it is {' or '.join(FORMATS)}.")
    read = [read_run(folder) for folder in folders]
    text = _html(read)
    write_whole(Path(output), text.encode())
    return Report(runs=tuple(run.name for run in read), format=format, nbytes=len(text.encode()))


def _html(runs: Sequence[Run]) -> str:
    chapters: list[dict[str, Any]] = [
        {"slug": f"run-{number}", "title": run.name, "sections": sections_of(run, f"run-{number}")}
        for number, run in enumerate(runs, 1)
    ]
    title = " and ".join(dict.fromkeys(run.source.split("@")[0].split("/")[-1] for run in runs))
    return render(title, [], chapters)
