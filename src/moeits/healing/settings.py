"""What a healing is told besides its recipe: which rows it learns from, and how its run goes."""

from dataclasses import dataclass
from pathlib import Path

from moeits.errors import SettingError
from moeits.runtime import checked_dtype
from moeits.settings import EXPERT, HEALING, OUTPUT, at_least, same_as, setting
from moeits.surgery.settings import Writing

# What the frozen model may be held in. float16 would need its loss scaled, which bfloat16 does without.
DTYPES = ("auto", "float32", "bfloat16")
# numpy's generators take no more.
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows are trained on, and which are held out."""

    valid: str | Path | None = setting(None, help="Separate held-out file.", panel=HEALING, shown_default="--holdout")
    holdout: float = setting(0.02, help="Share of the rows that is held out.", panel=HEALING)
    samples: int | None = setting(
        None, help="Use this many rows, at random.", panel=HEALING, shown_default="all needed"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise SettingError(f"--holdout {self.holdout:g} is out of range: it is a share from 0 to below 1.")
        at_least("samples", self.samples, 1)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a run goes: where it starts from, what it keeps and what it is watched by."""

    seed: int = setting(0, help="Seed of data order, dropout and the adapters' start.", panel=HEALING)
    dtype: str = setting(
        "auto",
        help="Of the frozen model: auto is bfloat16 on a GPU, float32 on a CPU.",
        panel=EXPERT,
        choices=DTYPES,
    )
    gradient_checkpointing: bool = setting(
        False, help="Less memory, more time: compute activations twice.", panel=EXPERT
    )
    evaluate_every: int | None = setting(
        None, help="Steps between two held-out losses.", panel=EXPERT, shown_default="a fifth of the steps"
    )
    save_every: int | None = setting(
        None, help="Steps between two saved states.", panel=EXPERT, shown_default="as --evaluate-every"
    )
    report_to: str | None = setting(
        None, help="wandb, mlflow, trackio, ...; several separated by commas.", panel=EXPERT
    )
    energy: bool = setting(False, help="Measure energy, by codecarbon.", panel=EXPERT, negatable=True)
    country: str | None = setting(
        None, help="Whose electricity it is (ISO code, such as ESP): gives the CO2 as well.", panel=EXPERT
    )
    resume: bool = setting(False, help="Go on with an interrupted healing.", panel=OUTPUT)
    fresh: bool = setting(False, help="Forget an interrupted healing.", panel=OUTPUT)

    def __post_init__(self) -> None:
        checked_dtype(self.dtype, DTYPES)
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise SettingError(f"--seed {self.seed} is out of range: give 0 to {_LARGEST_SEED}.")
        for name in ("evaluate_every", "save_every"):
            at_least(name, getattr(self, name), 1)

    @property
    def goes_on(self) -> bool:
        """Whether an interrupted run is taken up again, and not forgotten."""
        return self.resume and not self.fresh


@dataclass(frozen=True, kw_only=True)
class Made:
    """What is made of a healing, and whether it is made at all."""

    keep_adapter: bool = setting(False, help="Also save the adapter, for peft.", panel=OUTPUT)
    overwrite: bool = same_as(Writing, "overwrite")
    dry_run: bool = same_as(Writing, "dry_run")
