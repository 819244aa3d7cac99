"""One healing with everything decided, before any weight is loaded; and what training makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import MissingExtra, SettingError
from moeits.experts.layout import MoELayout
from moeits.healing.batches import TrainingData
from moeits.healing.merging import FactorsByName
from moeits.healing.recipe import HealingRecipe
from moeits.healing.run import HealingRun
from moeits.healing.settings import Training
from moeits.healing.targets import Target
from moeits.measurement.energy import Energy, check_country
from moeits.runtime import need, processes


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a run does beside learning."""

    evaluate_every: int
    """Steps between two looks at the held-out loss."""
    save_every: int
    """Steps between two checkpoints of the run; a multiple of `evaluate_every`."""
    report_to: tuple[str, ...]
    """wandb, mlflow, trackio, ...: whatever transformers' Trainer can report to."""
    gradient_checkpointing: bool
    energy: bool
    """Measure it, by codecarbon."""
    country: str | None
    resume: bool
    fresh: bool

    @classmethod
    def of(cls, recipe: HealingRecipe, training: Training) -> "Schedule":
        """Five looks and five checkpoints, unless told otherwise. Raises SettingError, MissingExtra."""
        every = training.evaluate_every or max(1, recipe.steps // 5)
        services = tuple(name.strip() for name in (training.report_to or "").split(",") if name.strip())
        return cls(
            evaluate_every=every,
            save_every=-(-(training.save_every or every) // every) * every,
            report_to=tuple(map(_checked_service, services)),
            gradient_checkpointing=training.gradient_checkpointing,
            energy=training.energy,
            country=check_country(training.country),
            resume=training.resume,
            fresh=training.fresh,
        )


def _checked_service(name: str) -> str:
    """A service that Trainer can report to from here."""
    services = need("transformers.integrations.integration_utils", extra="heal")
    if name not in services.INTEGRATION_TO_CALLBACK:
        raise SettingError(f"--report-to {name} is not one of {', '.join(services.INTEGRATION_TO_CALLBACK)}.")
    if name not in services.get_available_reporting_integrations():
        raise MissingExtra(f"--report-to {name} needs {name}, which is not installed: pip install {name}")
    return name


@dataclass(frozen=True, kw_only=True)
class HealingJob:
    """What is trained on what."""

    checkpoint: Checkpoint
    moe: MoELayout
    recipe: HealingRecipe
    targets: tuple[Target, ...]
    data: TrainingData
    pad: int
    run: HealingRun
    schedule: Schedule
    seed: int
    dtype: str
    teacher: Checkpoint | None

    @property
    def trainable_parameters(self) -> int:
        """Numbers in all adapters."""
        return sum(
            stack * self.recipe.rank * (rows + columns)
            for target in self.targets
            for stack, rows, columns in target.weights.values()
        )

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed; the number of steps apart."""
        recipe = {name: value for name, value in self.recipe.facts().items() if name != "steps"}
        return {
            "fingerprint": self.checkpoint.fingerprint,
            "recipe": recipe,
            "data": self.data.training.digest(),
            "held_out": self.data.held_out.digest(),
            "seed": self.seed,
            "dtype": self.dtype,
            "teacher": None if self.teacher is None else self.teacher.fingerprint,
            "processes": processes(),
        }


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves."""

    factors: FactorsByName
    loss_before: float | None
    loss_after: float | None
    best_step: int | None
    curves: Mapping[str, Any]
    energy: Energy
    peak_memory_bytes: int
    is_main_process: bool
    """False in the helpers of a distributed run, which write nothing."""
