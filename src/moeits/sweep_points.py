"""The points of a sweep: prune, evaluate, heal, evaluate again; one at a time, and nothing that is finished."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.checkpoint import Checkpoint
from moeits.evaluate import evaluate
from moeits.heal import heal
from moeits.measure import measure
from moeits.measurement.ledger import Ledger
from moeits.progress import Progress
from moeits.prune import prune
from moeits.run_folder import PointFolder, RunFolder


@dataclass(frozen=True, kw_only=True)
class PointWork:
    """What is to be done at every point of one run."""

    checkpoint: Checkpoint
    run: RunFolder
    ledger: Ledger
    evaluation: Mapping[str, Any]
    """Arguments of `evaluate`; empty if nothing is to be evaluated."""
    healing: Mapping[str, Any]
    """Arguments of `heal`; empty if nothing is to be healed."""
    footprint: Mapping[str, Any]
    """Arguments of `measure`; empty if no footprint is to be taken."""
    progress: Progress

    def all_points(self, names: Sequence[str]) -> None:
        """Finish the points of these folders, the unpruned model's among them."""
        names = list(dict.fromkeys(names))
        for number, name in enumerate(names):
            self.progress("points of the sweep", number, len(names))
            self.one_point(PointFolder(self.run.path / name))
        self.progress("points of the sweep", len(names), len(names))

    def one_point(self, point: PointFolder) -> None:
        """Do what is missing at one point, and remove the checkpoints when all of it is there."""
        if not any(file.parent == point.path and not file.exists() for file in self._wanted(point)):
            return
        point.path.mkdir(exist_ok=True)
        model = self._pruned(point)
        if self.evaluation and not point.unhealed.exists():
            self._evaluate(model, point.unhealed, point)
        if self.footprint and not point.footprint.exists():
            measure(model, output=point.footprint, progress=self.progress, **self.footprint)
        if point.healed in self._wanted(point):
            self._heal(model, point)
        shutil.rmtree(point.pruned_checkpoint, ignore_errors=True)
        shutil.rmtree(point.healed_checkpoint, ignore_errors=True)

    def _wanted(self, point: PointFolder) -> list[Path]:
        wanted = [point.unhealed] if self.evaluation else []
        wanted += [point.footprint] if self.footprint else []
        # A tau that keeps everything is the unpruned model; it is healed only if some tau reaches it.
        return wanted + ([point.healing, point.healed] if self.healing and point.plan.exists() else [])

    def _pruned(self, point: PointFolder) -> Path:
        """The checkpoint of a point, written if it is not there."""
        if point == self.run.unpruned:
            return self.checkpoint.folder
        if not (point.pruned_checkpoint / "config.json").exists():
            with self.ledger.stage("pruning", point.path.name):
                prune(self.checkpoint, plan=point.plan, output=point.pruned_checkpoint, progress=self.progress)
        return point.pruned_checkpoint

    def _heal(self, model: Path, point: PointFolder) -> None:
        if not (point.healed_checkpoint / "config.json").exists():
            with self.ledger.stage("healing", point.path.name):
                started = point.healed_checkpoint.with_name(point.healed_checkpoint.name + ".healing").exists()
                heal(model, output=point.healed_checkpoint, resume=started, progress=self.progress, **self.healing)
        shutil.copyfile(point.healed_checkpoint / "healing.json", point.healing)
        if not point.healed.exists():
            self._evaluate(point.healed_checkpoint, point.healed, point)

    def _evaluate(self, model: Path, output: Path, point: PointFolder) -> None:
        with self.ledger.stage("evaluation", None if point == self.run.unpruned else point.path.name):
            evaluate(model, output=output, progress=self.progress, **self.evaluation)
