"""Layers padded to the count of the largest, so that classes with one count for all layers open unequal ones.

What is added is an expert of zeros that can never be chosen: the router of such a family adds a bias to the scores that
it chooses by, and this expert's is so low that no score lifts it. Each score is of its own logit alone, so nothing else
of the layer is changed, and the model computes what it computes without padding. Of a softmax over all experts that is
not so: padding takes its share, and the scores of the others shrink beside their biases. No byte is saved by it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np

from moeits.checkpoint.reading import DTYPES, Checkpoint
from moeits.checkpoint.writing import NewTensor
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import PlanError, SettingError
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout
from moeits.sizes import format_size

SELECTION_BIASES = ("e_score_correction_bias", "expert_bias", "router_bias")
"""How the tensors end whose entries are added to an expert's score where experts are chosen, and only there."""

NEVER = -1e4
"""The selection bias of padding: finite, and within float16. Scores are sigmoids or the like, and biases small."""

PADDED_BYTES = "padded_bytes"
"""In the summary of a plan that was carried out padded: bytes of all tensors, zeros among them."""

Slots = tuple[int | None, ...]
"""The experts of a padded layer in their new order; None is padding."""


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How the layers of a plan are padded."""

    count: int
    """Experts of every layer, padding among them."""
    slots: Mapping[int, Slots]

    @property
    def added(self) -> dict[int, list[int]]:
        """Layer -> the numbers of its experts that are padding."""
        return {i: [at for at, expert in enumerate(slots) if expert is None] for i, slots in self.slots.items()}


def padding_of(plan: PruningPlan, checkpoint: Checkpoint, moe: MoELayout) -> Padding:
    """How this plan is padded. Raises SettingError where the family or the plan has no way to, PlanError for a layer
    that keeps fewer experts than the router picks."""
    _check_family(checkpoint, moe)
    if plan.edit is not None:
        raise SettingError(
            f"--layout padded cannot be with the edit {plan.edit.name} of this plan: plan without --edit, or use "
            "--layout per-layer."
        )
    count = max(plan.counts.values())
    for i, layer in moe.layers.items():
        if len(plan.kept[i]) < min(layer.top_k, count):
            raise PlanError(
                f"Layer {i} keeps {len(plan.kept[i])} experts and its router picks {layer.top_k}, so --layout padded "
                "would have it pick padding. Plan with --min-experts, or use --layout per-layer."
            )
    return Padding(count=count, slots={i: _slots(layer, plan.kept[i], count) for i, layer in moe.layers.items()})


def with_padded_bytes(plan: PruningPlan, nbytes: int) -> PruningPlan:
    """The plan, which says how large the padded tensors are. Raises PlanError if that is over its --max-size."""
    most = plan.settings.get("max_size")
    if isinstance(most, int) and nbytes > most:
        raise PlanError(
            f"Padded to {max(plan.counts.values())} experts in every layer the tensors have {format_size(nbytes)}, "
            f"more than the {format_size(most)} of --max-size: use --layout uniform, or plan a smaller size."
        )
    return replace(plan, summary={**plan.summary, PADDED_BYTES: nbytes})


def without_padding(plan: PruningPlan) -> PruningPlan:
    """The plan, which says nothing of how it was padded before."""
    return replace(plan, summary={key: value for key, value in plan.summary.items() if key != PADDED_BYTES})


def _check_family(checkpoint: Checkpoint, moe: MoELayout) -> None:
    if not all(_biases(layer) for layer in moe.layers.values()):
        raise SettingError(
            f"--layout padded needs a router that chooses by scores plus a bias, and {moe.architecture.model_type} has "
            "none in this checkpoint: use --layout uniform, or per-layer."
        )
    if moe.architecture.affinity == "softmax":
        raise SettingError(
            f"--layout padded needs a router that chooses by a score of each expert alone, and that of "
            f"{moe.architecture.model_type} chooses by a softmax over all, so that padding would change which experts "
            "are chosen: use --layout uniform, or per-layer."
        )
    names = (name for layer in moe.layers.values() for own in layer.experts.values() for name in own.values())
    fused = (name for layer in moe.layers.values() for name in layer.fused.values())
    if "quantization_config" in checkpoint.config or any(
        not checkpoint.tensors[name].dtype.startswith(("F", "BF")) for name in (*names, *fused)
    ):
        raise SettingError(
            "--layout padded is for weights that are numbers, and those of this checkpoint are quantized: pad a copy "
            "in bf16, and quantize that."
        )


def _biases(layer: MoELayer) -> list[str]:
    return [name for name in layer.router if name.endswith(SELECTION_BIASES)]


def _slots(layer: MoELayer, kept: Sequence[int], count: int) -> Slots:
    """Experts stay in their group, each of which is padded: a router may choose groups before experts."""
    slots: list[int | None] = []
    before, after = layer.num_experts // layer.groups, count // layer.groups
    for group in range(layer.groups):
        own = [expert for expert in kept if expert // before == group]
        slots += [*own, *[None] * (after - len(own))]
    return tuple(slots)


# ------------------------------------------------------------------------------------------------ its tensors


def filler(layer: MoELayer, name: str) -> float:
    """What a padding expert has in a tensor that holds something of all experts."""
    return NEVER if name in _biases(layer) else 0.0


def filled(value: float, dtype: str, entries: int) -> Callable[[], bytes]:
    """So many entries of one value, made when they are written."""
    return partial(_repeated, np.asarray(value).astype(DTYPES[dtype]).tobytes(), entries)


def _repeated(entry: bytes, entries: int) -> bytes:
    return entry * entries


def own_tensors(checkpoint: Checkpoint, layer: MoELayer, slots: Sequence[int | None]) -> list[NewTensor]:
    """The tensors of padding in a layer whose experts have tensors of their own."""
    made = []
    for number in (at for at, expert in enumerate(slots) if expert is None) if layer.experts else ():
        for key, name in layer.experts[0].items():
            info = checkpoint.tensors[name]
            zeros = filled(0.0, info.dtype, prod(info.shape))
            own = name_of(layer, number, key)
            made.append(NewTensor(name=own, dtype=info.dtype, shape=info.shape, nbytes=info.nbytes, parts=(zeros,)))
    return made


def name_of(layer: MoELayer, number: int, key: str) -> str:
    """The name of a tensor of an expert with this number, which the layer need not have."""
    of_first = layer.experts[0][key].removesuffix(key)
    return re.sub(r"0(?=\D*$)", str(number), of_first) + key
