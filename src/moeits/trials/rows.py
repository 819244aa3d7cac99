"""The rows of a comparison of criteria: each choice pruned, evaluated, refitted, evaluated again, healed on request.

RUN/criteria.json                 what was asked, and all rows with their cost
RUN/evidence.safetensors          the one scoring, signals.safetensors the one calibration
RUN/ledger.json                   seconds, joules and peak memory of every stage
RUN/unpruned/unhealed.json        results of the model as it came
RUN/reap/plan.json                who stays; unhealed.json the results, healing.json and healed.json on request
RUN/reap/refitted/                refit.json and results after a refit, healed as well on request
RUN/random-0/                     the random choice of seed 0
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moeits.calibration.settings import Machine, Tokens
from moeits.checkpoint.opening import Verifying
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.replaceable import remove_checkpoint
from moeits.checkpoint.writing import check_output
from moeits.choosing.criteria import CRITERIA
from moeits.criteria_file import CriteriaFile, read_criteria
from moeits.errors import SettingError
from moeits.files import is_artefact, write_whole
from moeits.finished import forget_finished, workplace
from moeits.refitting.requirements import check_pair
from moeits.refitting.settings import Fitting
from moeits.stages.evaluate import evaluate
from moeits.stages.prune import prune
from moeits.stages.refit import refitted
from moeits.sweeping.points import HEALED_SEED, PointWork
from moeits.sweeping.run_folder import PointFolder, RunFolder

SCORING, CALIBRATING, TOKENS, PRUNING, REFITTING = "scoring", "calibrating", "tokens of the refit", "pruning", "refit"
HEALING = "healing"


@dataclass(frozen=True)
class RowFolder(PointFolder):
    """The folder of one choice, or of what a refit makes of it."""

    @property
    def is_refitted(self) -> bool:
        return self.path.name == "refitted"

    @property
    def name(self) -> str:
        """What the run calls it: its path within the run."""
        return f"{self.path.parent.name}/refitted" if self.is_refitted else self.path.name

    @property
    def plan(self) -> Path:
        return (self.path.parent if self.is_refitted else self.path) / "plan.json"

    @property
    def refitted(self) -> "RowFolder":
        """What a refit makes of it."""
        return RowFolder(self.path / "refitted", seed=self.seed)

    @property
    def refit(self) -> Path:
        return self.path / "refit.json"

    @property
    def before_refit(self) -> Path:
        """Where the pruned model lies while it is refitted."""
        return self.path / "unrefitted"

    def forget(self) -> None:
        """Remove what was made here, the refit's too."""
        if not self.is_refitted and self.refitted.path.is_dir():
            self.refitted.forget()
        remove_checkpoint(self.before_refit)
        forget_finished(self.pruned_checkpoint)
        if is_artefact(self.refit):
            self.refit.unlink()
        super().forget()


@dataclass(frozen=True)
class CriteriaFolder(RunFolder):
    """The folder of a comparison over one checkpoint with one set of settings."""

    @property
    def record(self) -> Path:
        return self.path / "criteria.json"

    @property
    def signals(self) -> Path:
        return self.path / "signals.safetensors"

    @property
    def records(self) -> tuple[Path, ...]:
        return self.record, self.evidence, self.signals, self.ledger

    def is_point(self, name: str) -> bool:
        criterion, _, seed = name.rpartition("-")
        names = {each.name for each in CRITERIA}
        return name == "unpruned" or name in names or (criterion in names and seed.isdecimal())

    def folder_of(self, name: str) -> RowFolder:
        return RowFolder(self.path / name)

    def row(self, criterion: str, seed: int | None) -> RowFolder:
        """The folder of a choice."""
        name = criterion if seed is None else f"{criterion}-{seed}"
        return RowFolder(self.path / name, seed=seed)

    def go_on(self, fingerprint: str, settings: Mapping[str, Any]) -> CriteriaFile | None:
        """What the folder holds already. Raises SettingError if it is of another checkpoint or other settings."""
        if self.sweep.exists():
            raise SettingError(f"{self.path} holds a sweep. Choose another --output for the comparison.")
        if not self.record.exists():
            return None
        before = read_criteria(self.record, error=SettingError)
        if before["fingerprint"] != fingerprint:
            raise SettingError(
                f"{self.path} holds a comparison on another checkpoint ({before['source']}). Choose another --output, "
                "or start again with --fresh."
            )
        known = before["settings"]
        differing = [
            name
            for name in settings
            if known.get(name) != settings[name]
            and not (name == "healing" and None in (known.get(name), settings[name]))
        ]
        if differing:
            raise SettingError(
                f"{self.path} holds a comparison with other settings ({', '.join(differing)}). Choose another "
                "--output, or start again with --fresh."
            )
        return before


@dataclass(frozen=True, kw_only=True)
class RowWork(PointWork):
    """What is to be done for every row of one run."""

    texts: Tokens
    fitting: Fitting
    machine: Machine

    @cached_property
    def windows(self) -> Any:
        """The tokens of all refits, made once."""
        from moeits.calibration.texts import windows_of

        with self.ledger.stage(TOKENS):
            return windows_of(self.checkpoint, self.texts, self.progress)

    def all_rows(self, rows: Sequence[PointFolder]) -> None:
        """Finish these rows, the unpruned model's among them."""
        for number, row in enumerate(rows):
            self.progress("rows of the comparison", number, len(rows))
            self.one_point(row)
        self.progress("rows of the comparison", len(rows), len(rows))

    def _is_healed(self, point: PointFolder) -> bool:
        return bool(self.points.healing) and point != self.run.unpruned and point.seed in (None, HEALED_SEED)

    def _evaluate(self, model: Path | Checkpoint, output: Path, point: PointFolder) -> None:
        with self._stage("evaluation", point):
            evaluate(model, output=output, device=self.machine.device, progress=self.progress, **self.points.evaluation)

    def _stage(self, name: str, point: PointFolder) -> Any:
        return self.ledger.stage(name, None if point == self.run.unpruned else point.name)

    def _pruned(self, point: PointFolder) -> Path | Checkpoint:
        if not isinstance(point, RowFolder) or not point.is_refitted:
            return super()._pruned(point)
        if not (point.pruned_checkpoint / "config.json").exists():
            self._refit(point)
        if not point.refit.exists():
            write_whole(point.refit, (point.pruned_checkpoint / "refit.json").read_bytes())
        return point.pruned_checkpoint

    def _refit(self, point: RowFolder) -> None:
        point.path.mkdir(exist_ok=True)
        if not (point.before_refit / "config.json").exists():
            with self._stage(PRUNING, point):
                prune(self.checkpoint, plan=point.plan, output=point.before_refit, progress=self.progress)
        _ = self.windows  # a stage of its own
        with self._stage(REFITTING, point):
            self._refitted(Checkpoint.open(point.before_refit), point.pruned_checkpoint)
        remove_checkpoint(point.before_refit)

    def _refitted(self, pruned: Checkpoint, output: Path) -> None:
        check_output(output, sources=[pruned.folder, self.checkpoint.folder], overwrite=False)
        check_pair(pruned, self.checkpoint, Verifying(), self.progress)  # a killed run may have left it
        with workplace(output, progress=self.progress) as place:
            asked = (self.fitting, self.machine, self.progress)
            refitted(place, self.windows, pruned, self.checkpoint, output, *asked, overwrite=False)
