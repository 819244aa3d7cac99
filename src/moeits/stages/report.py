"""The JSON and evidence of one or more runs -> one self-contained HTML page, or its tables in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import EvaluationError, SettingError
from moeits.evaluation.results import Results
from moeits.files import check_file_output, write_whole
from moeits.printable import printable
from moeits.report_page import FORMATS
from moeits.report_page.artefacts import Point, Run, read_run
from moeits.report_page.blocks import Section
from moeits.report_page.markdown import card_with_results, tables
from moeits.report_page.model_index import with_model_index
from moeits.report_page.page import render
from moeits.report_page.published import published_section
from moeits.report_page.rows import rows_of
from moeits.report_page.sections import sections_of
from moeits.report_page.side_by_side import check_comparable, side_by_side, with_own_names


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written."""

    runs: tuple[str, ...]
    nbytes: int | None
    """Of the page or the tables; None if only a card, or nothing, was written."""
    text: str | None = None
    """The tables in Markdown, where they go to no file."""


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
    read. `card` is a checkpoint whose README.md gains its own results, those of the unpruned model and of its control;
    its front matter tells the hub its own (`model-index`).
    `published` adds the paper's own rows, with their caveats. Tables in Markdown need neither `output` nor `card`: they
    are in what is returned.

    Raises EvaluationError if a run has nothing to show or a file of it is broken, or if runs were asked nothing alike,
    SettingError for arguments that make no sense, OutputError if the result cannot be written, MissingExtra without
    matplotlib and jinja2.
    """
    if format not in FORMATS:
        raise SettingError(f"--format {format} is not one of {', '.join(FORMATS)}.")
    if output is None and card is None and format != "md":
        raise SettingError("Say where the report goes: --output report.html, or --card CHECKPOINT.")
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    read = with_own_names([read_run(folder) for folder in folders])
    if not read:
        raise SettingError("Name at least one run.")
    check_comparable(read)
    if output is not None:
        inputs = (Path(folder) / name for folder, run in zip(folders, read, strict=True) for name in run.files)
        check_file_output(Path(output), inputs=inputs)
    if card is not None:
        _write_card(Path(card), read)
    names = tuple(run.name for run in read)
    extra = [published_section()] if published else []
    if output is None:
        return Report(runs=names, nbytes=None, text=None if card else tables(read, extra))
    content = (_html(read, extra) if format == "html" else tables(read, extra)).encode()
    write_whole(Path(output), content)
    return Report(runs=names, nbytes=len(content))


def _write_card(checkpoint: Path, runs: Sequence[Run]) -> None:
    path = checkpoint / "README.md"
    if not path.is_file():
        raise EvaluationError(f"{checkpoint} has no README.md, so there is no card to add results to.")
    own = [alone for run in runs if (alone := _of_checkpoint(checkpoint, run))]
    if not own:
        raise EvaluationError(
            f"These runs are not of {checkpoint}: no model in them keeps the experts that it keeps. Sweep the tau it "
            "was pruned by, or name the run that it comes from."
        )
    if not any(rows_of(run) or any(point.footprint for point in run.points) for run in own):
        raise EvaluationError("These runs have no results to add to a card. Evaluate first: moeits sweep --evaluate.")
    card = card_with_results(_text_of(path), own)
    if results := _results_of(checkpoint, own[0]):
        card = with_model_index(card, printable(checkpoint.resolve().name), results)
    write_whole(path, card.encode(), card_of=checkpoint)


def _results_of(checkpoint: Path, run: Run) -> Results | None:
    """Of the checkpoint itself, in a run that was narrowed down to it."""
    if not (checkpoint / "plan.json").exists():
        return run.unpruned.unhealed
    (point,) = run.points
    return point.healed if (checkpoint / "healing.json").exists() else point.unhealed


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read as UTF-8 text, so no results can be added to it.") from error


def _of_checkpoint(checkpoint: Path, run: Run) -> Run | None:
    """The run with this checkpoint's own model, the unpruned one and the control; None if it is not in the run."""
    if not (checkpoint / "plan.json").exists():
        return run if Checkpoint.open(checkpoint).fingerprint == run.fingerprint else None
    plan = PruningPlan.load(checkpoint / "plan.json")

    def is_it(point: Point) -> bool:
        return point.plan is not None and point.plan.kept == plan.kept

    found = next((p for point in run.points for p in (point, *point.controls) if is_it(p)), None)
    same = found is not None and plan.fingerprint == run.fingerprint
    return replace(run, points=(found,), left_out={}) if same and found is not None else None


def _html(runs: Sequence[Run], extra: Sequence[Section]) -> str:
    chapters: list[dict[str, Any]] = [
        {"slug": f"run-{number}", "title": run.name, "sections": sections_of(run, f"run-{number}")}
        for number, run in enumerate(runs, 1)
    ]
    if len(runs) > 1:
        chapters.insert(
            0, {"slug": "all", "title": "Side by side", "sections": [each for each in [side_by_side(runs)] if each]}
        )
    if extra:
        chapters.append({"slug": "published", "title": "From the paper", "sections": list(extra)})
    models = dict.fromkeys(run.source.split("@")[0].split("/")[-1] for run in runs)
    return render(" and ".join(models), _lead(runs), chapters)


def _lead(runs: Sequence[Run]) -> list[str]:
    experts = sum(facts.num_experts for run in runs[:1] if run.evidence for facts in run.evidence.layers.values())
    if len(runs) > 1 or not experts:
        return ["Which experts can go, and what that costs."]
    return [f"Which of its {experts:,} experts can go, and what that costs."]
