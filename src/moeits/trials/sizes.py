"""One size of a model that is not written: its layers' errors, and its loss at the end of the streams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moeits.calibration.settings import Machine
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.devices import checked_device
from moeits.experts.layout import MoELayout
from moeits.finished import FinishedParts
from moeits.progress import Progress
from moeits.refitting.all_layers import fit_all
from moeits.refitting.files import FittedLayers
from moeits.refitting.judgement import judged
from moeits.refitting.settings import Fitting
from moeits.sizes import parse_size
from moeits.stages.compare import RESAMPLES, paired_interval
from moeits.surgery.unwritten import unwritten


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of a model on held-out windows. Losses are nats per token."""

    loss: float
    rise: float
    """Over the unpruned model."""
    low: float
    high: float
    """The 95 % interval of the rise, by a paired bootstrap over windows."""
    kl_to_parent: float
    """KL(parent || this), nats per token."""
    same_first_choice: float
    """At what share of the tokens both find the same next token the most likely."""


@dataclass(frozen=True, kw_only=True)
class SizeForecast:
    """What a reduction would cost."""

    reduction: float
    """As it was asked for."""
    summary: Mapping[str, Any]
    """Of the plan: experts, parameters and bytes before and after."""
    layers: tuple[Mapping[str, Any], ...]
    """Of every layer that loses experts: its relative error before and after the refit, ridge, drift."""
    pruned: Prediction
    refitted: Prediction
    """As `pruned` where the refit would be refused."""
    accepted: bool
    """Whether the refit lowers the loss for certain."""


def forecast_size(
    parent: Checkpoint,
    plan: PruningPlan,
    reduction: float,
    windows: Any,
    fitting: Fitting,
    machine: Machine,
    beside: Path,
    progress: Progress,
) -> tuple[float, SizeForecast]:
    """The loss of the unpruned model, and what is left at one size; nothing but activations touches the disk."""
    pruned = unwritten(parent, plan)
    fitted = FittedLayers(FinishedParts(None), MoELayout.of(pruned), pruned)
    most_bytes, device = parse_size(machine.memory, "--memory"), checked_device(machine.device)
    losses = fit_all(parent, pruned, windows, fitting, fitted, beside, most_bytes, device, progress)
    # Whether a refit is accepted is decided as `moeits refit` would; what it costs is told by who judges.
    _, accepted = judged(losses, windows.deciding)
    told = _of_windows(losses, windows.telling)
    found = {name: _prediction(told, name) for name in ("pruned", "refitted")}
    forecast = SizeForecast(
        reduction=reduction,
        summary=plan.summary,
        layers=tuple(fitted.facts),
        pruned=found["pruned"],
        refitted=found["refitted" if accepted else "pruned"],
        accepted=accepted,
    )
    return float(np.mean(told["nats"]["unpruned"])), forecast


def _of_windows(losses: Mapping[str, Any], some: slice) -> dict[str, Mapping[str, Sequence[float]]]:
    """What three models say of some of the windows that judge."""
    names = ("nats", "kl_to_parent", "same_first_choice")
    return {name: {model: values[some] for model, values in losses[name].items()} for name in names}


def _prediction(losses: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> Prediction:
    nats = np.array(losses["nats"][name])
    rises = nats - np.array(losses["nats"]["unpruned"])
    low, high = paired_interval(rises, np.ones(len(rises)), RESAMPLES, np.random.default_rng(0))
    return Prediction(
        loss=float(nats.mean()),
        rise=float(rises.mean()),
        low=low,
        high=high,
        kl_to_parent=float(np.mean(losses["kl_to_parent"][name])),
        same_first_choice=float(np.mean(losses["same_first_choice"][name])),
    )
