"""What becomes of layers for multi-token prediction: kept whole, or left out. Their experts are in no plan."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.experts.counting import parameters_of
from moeits.experts.layout import MoELayout
from moeits.experts.mtp import MTP_KEYS

SETTING = "mtp"
KEPT, DROPPED = "kept whole", "dropped"


def drops_mtp(plan: PruningPlan, *, asked: bool) -> bool:
    """Whether layers for multi-token prediction are left out: by the call, or by the plan that is carried out again."""
    return asked or plan.settings.get(SETTING) == DROPPED


def without_mtp(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that promises no such layers, in whichever of its parts."""
    return {
        key: 0 if key in MTP_KEYS else without_mtp(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }


def plan_with_mtp(plan: PruningPlan, checkpoint: Checkpoint, moe: MoELayout, *, dropped: bool) -> PruningPlan:
    """A fitted plan that says what becomes of them, with the sizes that are left."""
    settings = {key: value for key, value in plan.settings.items() if key != SETTING}
    if not dropped or not moe.mtp.tensors:
        return replace(plan, settings={**settings, SETTING: KEPT} if moe.mtp.have_experts else settings)
    gone, parameters = [checkpoint.tensors[name] for name in moe.mtp.tensors], parameters_of(checkpoint)
    summary = {
        **plan.summary,
        "parameters_after": plan.summary["parameters_after"] - sum(parameters[info.name] for info in gone),
        "bytes_after": plan.summary["bytes_after"] - sum(info.nbytes for info in gone),
    }
    summary["reduction_of_all"] = 1 - summary["parameters_after"] / summary["parameters_before"]
    return replace(plan, summary=summary, settings={**settings, SETTING: DROPPED})
