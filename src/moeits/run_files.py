"""The JSON files of a run, each as a type: what must be in them to be shown, compared or gone on with.

`docs/` describes every field; these are the ones that moeits reads. Files with more are read all the same.
"""

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from moeits.errors import EvaluationError, MoeitsError
from moeits.typed_json import Count, Typed, read_typed

Number = Annotated[float, msgspec.Meta(ge=-1e100, le=1e100)]
"""Something measured. Its square, and a sum of such, is still a float, and an axis of a plot can show it."""


class PointOfSweep(TypedDict):
    """What a tau leaves."""

    tau: Number
    folder: str


class SweepFile(TypedDict):
    """sweep.json: what was asked, and what each tau leaves."""

    source: str
    model_type: str
    fingerprint: str
    settings: dict[str, Any]
    points: list[PointOfSweep]


class LedgerEntry(TypedDict):
    """What one stage took."""

    stage: str
    seconds: Number
    point: NotRequired[str | None]
    joules: NotRequired[Number | None]
    mode: NotRequired[str | None]
    finished: NotRequired[bool]
    co2_grams: NotRequired[Number | None]
    country: NotRequired[str | None]
    why_not: NotRequired[str | None]
    peak_bytes: NotRequired[Count | None]
    """The most that the process held meanwhile; None where the system does not say so of a part of its life."""


class LedgerFile(TypedDict):
    """ledger.json: the run's own log."""

    entries: list[LedgerEntry]


class LossAt(TypedDict):
    """A loss on the way."""

    step: Number
    loss: Number


class Curves(TypedDict):
    """Losses by step."""

    training: list[LossAt]
    held_out: list[LossAt]


class RecipeOfHealing(TypedDict):
    """Of a recipe, what a page shows."""

    steps: Count


class HealingFile(TypedDict):
    """healing.json: how a model was healed. Losses are per held-out token, in nats."""

    recipe_name: str
    recipe: RecipeOfHealing
    trainable_parameters: Count
    seconds: Number
    loss_before: NotRequired[Number | None]
    loss_merged: NotRequired[Number | None]
    notes: NotRequired[list[str] | None]
    curves: NotRequired[Curves | None]


class Between(TypedDict):
    """A paired difference with its 95 % interval."""

    mean: Number
    low: Number
    high: Number


class LossOfRefit(TypedDict):
    """Of a refit, on tokens that took no part: nats per token."""

    tokens: Count
    pruned: Number
    refitted: Number
    difference: NotRequired[Between | None]


class Judged(TypedDict):
    """Of tokens that fit, choose and judge, how those that judge were told from the others."""

    held_out_by: str
    judge: NotRequired[str]
    judged_by: NotRequired[list[str]]


class RefitFile(TypedDict):
    """refit.json: how a model was refitted, and whether its weights were changed."""

    accepted: bool
    loss: LossOfRefit
    data: Judged


class PredictionOfLoss(TypedDict):
    """A rise of the loss, nats per token, with its 95 % interval."""

    rise: Number
    low: Number
    high: Number


class SizeOfForecast(TypedDict):
    """What a forecast says of one size."""

    reduction: Number
    pruned: PredictionOfLoss
    refitted: PredictionOfLoss
    accepted: bool


class SettingsOfForecast(TypedDict):
    """Of what was asked for, what a page shows."""

    criterion: str


class ForecastFile(TypedDict):
    """forecast.json: what each size would cost, before anything is written."""

    source: str
    fingerprint: str
    settings: SettingsOfForecast
    budget: Number
    safe: dict[str, Number | None]
    sizes: list[SizeOfForecast]
    data: Judged


class Speed(TypedDict):
    """Tokens per second: the median, the slowest and the fastest."""

    tokens_per_second: Number
    slowest: Number
    fastest: Number


class Flops(TypedDict):
    """FLOPs of a pass, divided by its tokens."""

    per_token: Number


class PeakMemory(TypedDict):
    """What was held at most."""

    peak_bytes: Count


class EnergyOfTokens(TypedDict):
    """Joules while generating."""

    joules_per_token: Number
    mode: NotRequired[str | None]


class FootprintFile(TypedDict):
    """footprint.json: what one checkpoint costs."""

    parameters: dict[str, Count]
    tensor_bytes: Count
    folder_bytes: Count
    not_measured: dict[str, str]
    sparsity: NotRequired[Number | None]
    flops: NotRequired[Flops | None]
    memory: NotRequired[PeakMemory | None]
    load_seconds: NotRequired[Number | None]
    prefill: NotRequired[Speed | None]
    decode: NotRequired[Speed | None]
    energy: NotRequired[EnergyOfTokens | None]
    machine: NotRequired[dict[str, Any] | None]


def read_sweep(path: Path, *, error: type[MoeitsError] = EvaluationError) -> SweepFile:
    """A sweep.json. Raises `error` if it is not one."""
    return read_typed(
        path,
        SweepFile,
        error=error,
        what="a sweep that moeits wrote",
        remedy="Start again with --fresh.",
        kind="sweep",
        format=1,
    )


def read_file(path: Path, of: type[Typed], *, what: str) -> Typed:
    """A file of a run that its own type describes. Raises EvaluationError with what is wrong in it."""
    return read_typed(path, of, error=EvaluationError, what=what, remedy="Remove it and make it again.")
