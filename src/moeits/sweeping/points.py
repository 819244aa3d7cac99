"""The points of a sweep: prune, evaluate, heal, evaluate again; one at a time, and nothing that is finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.replaceable import remove_checkpoint
from moeits.evaluation.perplexity import read_text
from moeits.files import write_whole
from moeits.measurement.ledger import Ledger
from moeits.progress import Progress
from moeits.stages.evaluate import evaluate
from moeits.stages.heal import check_healing, heal
from moeits.stages.measure import measure
from moeits.stages.prune import prune
from moeits.sweeping.run_folder import PointFolder, RunFolder
from moeits.sweeping.settings import PointSettings

# The control is the product's rival and not part of it, so the ledger keeps what it costs apart.
CONTROL = "control: "
# Healing costs far more than an evaluation, so of the random choices only that of this seed is healed.
HEALED_SEED = 0


def check_points(points: PointSettings, checkpoint: Checkpoint) -> None:
    """What can be known to be wrong with the work of all points before anything is scored. Raises what stages raise."""
    if points.perplexity is not None:
        read_text(points.perplexity, points.limit)
    if points.heal is not None:
        check_healing(checkpoint, data=points.heal, recipe=points.recipe)


@dataclass(frozen=True, kw_only=True)
class PointWork:
    """What is to be done at every point of one run."""

    checkpoint: Checkpoint
    run: RunFolder
    ledger: Ledger
    points: PointSettings
    progress: Progress

    def all_points(self, points: Sequence[PointFolder]) -> None:
        """Finish these points, the unpruned model's among them."""
        for number, point in enumerate(points):
            self.progress("points of the sweep", number, len(points))
            self.one_point(point)
        self.progress("points of the sweep", len(points), len(points))

    def one_point(self, point: PointFolder) -> None:
        """Do what is missing at one point, and remove the checkpoints when all of it is there."""
        if all(file.exists() for file in self._wanted(point)):
            return
        point.path.mkdir(exist_ok=True)
        model = self._pruned(point)
        if self.points.evaluation and not point.unhealed.exists():
            self._evaluate(model, point.unhealed, point)
        if point.footprint in self._wanted(point) and not point.footprint.exists():
            measure(model, output=point.footprint, progress=self.progress, **self.points.footprint)
        if self._is_healed(point) and not (point.healing.exists() and point.healed.exists()):
            self._heal(model, point)
        remove_checkpoint(point.pruned_checkpoint)
        remove_checkpoint(point.healed_checkpoint)

    def _wanted(self, point: PointFolder) -> list[Path]:
        wanted = [point.unhealed] if self.points.evaluation else []
        # Equal counts cost the same, whoever chose.
        wanted += [point.footprint] if self.points.footprint and point.seed is None else []
        return wanted + ([point.healing, point.healed] if self._is_healed(point) else [])

    def _is_healed(self, point: PointFolder) -> bool:
        # A tau that keeps everything is the unpruned model; it is healed only if some tau reaches it.
        return bool(self.points.healing) and point.plan.exists() and point.seed in (None, HEALED_SEED)

    def _pruned(self, point: PointFolder) -> Path | Checkpoint:
        """The checkpoint of a point, written if it is not there."""
        if point == self.run.unpruned:
            return self.checkpoint
        if not (point.pruned_checkpoint / "config.json").exists():
            with self._stage("pruning", point):
                prune(self.checkpoint, plan=point.plan, output=point.pruned_checkpoint, progress=self.progress)
        return point.pruned_checkpoint

    def _heal(self, model: Path | Checkpoint, point: PointFolder) -> None:
        if not (point.healed_checkpoint / "config.json").exists():
            with self._stage("healing", point):
                started = point.healed_checkpoint.with_name(point.healed_checkpoint.name + ".healing").exists()
                heal(
                    model, output=point.healed_checkpoint, resume=started, progress=self.progress, **self.points.healing
                )
        write_whole(point.healing, (point.healed_checkpoint / "healing.json").read_bytes())
        if not point.healed.exists():
            self._evaluate(point.healed_checkpoint, point.healed, point)

    def _evaluate(self, model: Path | Checkpoint, output: Path, point: PointFolder) -> None:
        with self._stage("evaluation", point):
            evaluate(model, output=output, progress=self.progress, **self.points.evaluation)

    def _stage(self, name: str, point: PointFolder) -> Any:
        """An entry of the ledger. Evaluating the unpruned model serves all points, so it is charged to none."""
        own = CONTROL if point.seed is not None else ""
        serves_all = name == "evaluation" and point == self.run.unpruned
        return self.ledger.stage(own + name, None if serves_all else point.name)
