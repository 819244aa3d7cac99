"""A recipe -> its run: simplify, refit, heal, evaluate and report, one after the other, from one file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.checkpoint.parts import HEALING_NAME, REFIT_NAME
from moeits.errors import OutputError, SettingError
from moeits.files import write_whole
from moeits.progress import Progress, silent
from moeits.recipes import NAME, Recipe, read_recipe
from moeits.stages.evaluate import evaluate
from moeits.stages.heal import heal
from moeits.stages.refit import refit
from moeits.stages.report import report
from moeits.stages.simplify import simplify

_STAGES: Mapping[str, Callable[..., Any]] = {
    "simplify": simplify,
    "refit": refit,
    "heal": heal,
    "evaluate": evaluate,
    "report": report,
}
_MADE = {"simplify": "pruned", "refit": "refitted", "heal": "healed"}
"""Step -> what it makes: a checkpoint in `checkpoints`, and what is known of it in a folder of that name."""
_TOLD = ("plan.json", REFIT_NAME, HEALING_NAME)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a run made."""

    model: str
    output: str
    steps: tuple[str, ...]
    """In their order; what was finished before is among them."""
    checkpoint: str
    """The last one, within the run."""


def run(recipe_file: str | Path, *, output: str | Path | None = None, progress: Progress = silent) -> Ran:
    """Carry out a recipe file: prune a model, and refit, heal, evaluate and report what is left, as far as it says so.

    The run's folder is `output`, or the recipe's own. It gets a copy of the recipe, by which it can be run again,
    `checkpoints` with what was pruned, refitted and healed, the results of each and of the unpruned model as `moeits
    report` reads them, and the report. All settings are checked before anything is read. The same recipe goes on where
    it was; what is finished is kept.

    Raises SettingError for a recipe that says something unknown or nothing that can be run, OutputError if the folder
    has the run of another recipe, and what its steps raise.
    """
    read = read_recipe(recipe_file, _STAGES)
    _check_order(read)
    folder = Path(output) if output is not None else read.output
    if folder is None:
        raise SettingError(f"{recipe_file} has no output: say where the run goes there, or with --output.")
    _keep(read, folder)
    model: str | Path = read.model
    for step in _MADE:
        if step in read.steps:
            made = folder / "checkpoints" / _MADE[step]
            made.parent.mkdir(exist_ok=True)
            if not made.exists():
                parent = {"parent": read.model} if step == "refit" else {}
                _STAGES[step](model, output=made, progress=progress, **parent, **read.steps[step])
            _tell(made, folder / _MADE[step])
            model = made
    if "evaluate" in read.steps:
        _evaluate(read, folder, progress)
    if "report" in read.steps:
        settings = read.steps["report"]
        report(folder, output=folder / f"report.{settings.get('format', 'html')}", **settings)
    return Ran(model=read.model, output=str(folder), steps=tuple(read.steps), checkpoint=Path(model).name)


def _check_order(recipe: Recipe) -> None:
    """Raises SettingError where a step could not take what the one before it makes."""
    later = next((step for step in ("refit", "heal") if step in recipe.steps), None)
    if later is not None and recipe.steps.get("simplify", {}).get("layout") == "padded":
        raise SettingError(
            f"simplify with layout padded comes last, and this recipe has {later} after it: {later} does not take a "
            "padded checkpoint. Use layout per-layer, and pad what comes out with a run of its own."
        )


def _keep(recipe: Recipe, folder: Path) -> None:
    """The recipe beside what it makes. Raises OutputError if there is another one, or anything else."""
    kept = folder / NAME
    try:
        if kept.is_file():
            if kept.read_text(encoding="utf-8") != recipe.text:
                raise OutputError(f"{folder} has the run of another recipe. Choose another --output.")
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} is there already, and is not the run of a recipe. Choose another --output.")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{folder} cannot be written: {error}. Choose another --output.") from None
    write_whole(kept, recipe.text.encode("utf-8"))


def _tell(checkpoint: Path, point: Path) -> None:
    """Copy what a checkpoint says of itself to where the report looks for it."""
    try:
        point.mkdir(exist_ok=True)
        for name in _TOLD:
            if (checkpoint / name).is_file() and not (point / name).exists():
                write_whole(point / name, (checkpoint / name).read_bytes())
    except OSError as error:
        raise OutputError(f"{point} cannot be written: {error}. Choose another --output.") from None


def _evaluate(recipe: Recipe, folder: Path, progress: Progress) -> None:
    """The unpruned model and each checkpoint of the run, each in the file where the report looks for it."""
    asked: Mapping[str, Any] = recipe.steps["evaluate"]
    models: dict[Path, str | Path] = {folder / "unpruned" / "unhealed.json": recipe.model}
    for step, name in _MADE.items():
        if step in recipe.steps:
            results = "healed.json" if step == "heal" else "unhealed.json"
            models[folder / name / results] = folder / "checkpoints" / name
    for file, model in models.items():
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            evaluate(model, output=file, progress=progress, **asked)
