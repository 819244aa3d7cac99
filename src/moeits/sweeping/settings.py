"""What a sweep was asked for, as its file says it: data by name and content, never by where they lay on a machine."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.calibration.settings import Tokens, Watching
from moeits.choosing.settings import Choice
from moeits.errors import SettingError
from moeits.evaluation.settings import Inference, Questions
from moeits.evaluation.tasks import task_names
from moeits.healing.recipe import RECIPES
from moeits.measurement.settings import Workload
from moeits.settings import COST, EXPERT, HEALING, POINTS, same_as, setting

OF_QUESTIONS = ("tasks", "perplexity", "num_fewshot", "limit", "data_dir")


@dataclass(frozen=True, kw_only=True)
class PointSettings:
    """What is to be done at every point of a sweep."""

    evaluate: str | None = setting(
        None, help="Evaluate every point on these tasks, as --tasks of evaluate.", panel=POINTS, metavar="TASKS"
    )
    perplexity: str | Path | None = same_as(Questions, "perplexity", panel=POINTS)
    num_fewshot: int = same_as(Questions, "num_fewshot", panel=EXPERT)
    batch_size: int = same_as(Inference, "batch_size", help="Prompts at a time in an evaluation.")
    limit: int | None = same_as(Questions, "limit", panel=POINTS)
    data_dir: str | Path | None = same_as(Questions, "data_dir", panel=POINTS)
    dtype: str = same_as(Inference, "dtype")
    heal: str | Path | None = setting(
        None, help="Heal every point on these data, and evaluate it again.", panel=HEALING, metavar="DATA"
    )
    recipe: str = setting("paper", help="How it is healed, as --recipe of heal.", panel=HEALING, choices=tuple(RECIPES))
    steps: int | None = setting(
        None, help="Updates of the optimiser.", panel=HEALING, shown_default="as the recipe has it"
    )
    control: int = setting(
        0, help="At every point also evaluate N random prunings of the same size.", panel=POINTS, metavar="N"
    )
    measure: bool = setting(False, help="Take the footprint of every point.", panel=COST)
    energy: bool = same_as(Workload, "energy", default=False)
    country: str | None = same_as(Workload, "country")

    def __post_init__(self) -> None:
        if self.control < 0:
            raise SettingError(f"--control {self.control} is out of range: give 0 or more random choices.")
        for flag, given in (("--heal", self.heal), ("--control", self.control)):
            if given and not self.evaluation:
                raise SettingError(
                    f"{flag} in a sweep needs --evaluate TASKS or --perplexity TEXT: what should it show?"
                )
        # What is out of range there should not be said only after the scoring.
        if self.evaluation:
            Questions(**{name: self.evaluation[name] for name in OF_QUESTIONS})
            Inference(batch_size=self.batch_size, dtype=self.dtype)
        if self.measure:
            Workload(**self.footprint)

    @property
    def evaluation(self) -> dict[str, Any]:
        """Arguments of `evaluate`; empty if nothing is to be evaluated."""
        names = ("perplexity", "num_fewshot", "batch_size", "limit", "data_dir", "dtype")
        asked = self.evaluate is not None or self.perplexity is not None
        return {"tasks": self.evaluate, **{name: getattr(self, name) for name in names}} if asked else {}

    @property
    def healing(self) -> dict[str, Any]:
        """Arguments of `heal`; empty if nothing is to be healed."""
        return {} if self.heal is None else {"data": self.heal, "recipe": self.recipe, "steps": self.steps}

    @property
    def footprint(self) -> dict[str, Any]:
        """Arguments of `measure`; empty if no footprint is to be taken."""
        return {"energy": self.energy, "country": self.country, "dtype": self.dtype} if self.measure else {}

    def facts(self) -> dict[str, Any]:
        """As the settings of sweep.json; None for work that is not asked for."""
        return {
            "evaluation": facts_of(self.evaluation),
            "healing": facts_of(self.healing),
            "measuring": facts_of(self.footprint),
            "control": self.control,
        }


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """By what the one order of a sweep is made, and how far down it goes."""

    criterion: str = same_as(Choice, "criterion")
    min_experts: int | None = same_as(Choice, "min_experts")


@dataclass(frozen=True, kw_only=True)
class Watched:
    """On what experts are watched, by a criterion that does."""

    data: str = same_as(
        Watching, "data", help="For criteria that watch experts at work: bundled, self, or texts (.jsonl)."
    )
    tokens: int = same_as(Watching, "tokens")

    def texts(self) -> Tokens:
        """The tokens."""
        return Tokens(data=self.data, tokens=self.tokens)

    def facts(self) -> dict[str, Any] | None:
        """As the scoring of sweep.json."""
        return facts_of({"data": self.data, "tokens": self.tokens})


def facts_of(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of a stage as JSON values; None if there are none.

    A file that is here is said by its name and its SHA-256, a data folder by the files of the tasks; so data that have
    changed are other data, whatever their name. What is not here, such as a data set of the hub, keeps its name.
    """
    shown = {}
    for name, value in arguments.items():
        path = Path(value) if name in _PATHS and value is not None else None
        if path is None or not path.exists():
            shown[name] = value if path is None else str(value)
        else:
            files = _files(path, arguments.get("tasks"))
            shown[name] = {"name": path.name, "sha256": _sha256(path, files)}
    return shown or None


_PATHS = ("data", "data_dir", "perplexity")


def _files(path: Path, tasks: str | None) -> list[Path]:
    """The file itself; of a data folder the files of these tasks, or all where a task has no folder of its own."""
    if path.is_file():
        return [path]
    own = [path / name for name in task_names(tasks or "")]
    folders = own if own and all(folder.is_dir() for folder in own) else [path]
    return sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())


def _sha256(path: Path, files: Iterable[Path]) -> str:
    """SHA-256 of a file; of a folder that of its listing, a line with name and SHA-256 for each file."""
    hashes = {file: _of_file(file) for file in files}
    if path.is_file():
        return hashes[path]
    listing = "".join(f"{file.relative_to(path).as_posix()} {digest}\n" for file, digest in hashes.items())
    return hashlib.sha256(listing.encode()).hexdigest()


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
