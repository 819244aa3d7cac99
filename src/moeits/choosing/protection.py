"""Experts that stay whatever the criterion says: those that a file names, and super experts.

Super experts (arXiv 2507.23279) are the few whose outputs make a model's massive activations; without three of them
Qwen3-30B no longer reasons. A criterion of averages can let one go, since few tokens reach it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from moeits.errors import EvidenceError, SettingError
from moeits.evidence import Evidence
from moeits.experts.inventory import MOST_EXPERTS, Inventory
from moeits.typed_json import read_typed

Protected = Mapping[int, frozenset[int]]
"""Decoder layer -> experts that stay."""

LARGEST = "largest-activation"
# As REAP's program looks for them: above this quantile and this share of the largest one, in the first layers.
_QUANTILE, _SHARE, _FIRST_LAYERS = 0.995, 0.1, 0.75
# A model without massive activations has a largest expert as well; that one is not so far above the others.
_ABOVE_MEDIAN = 10.0

_Named = dict[Annotated[int, Meta(ge=0)], list[Annotated[int, Meta(ge=0, lt=MOST_EXPERTS)]]]


def named_by(path: str | Path | None, inventory: Inventory) -> Protected:
    """What a file of `--protect` names: JSON such as {"1": [68], "2": [92]}, decoder layer -> experts.

    Raises SettingError if it is not such a file, or names what the model does not have.
    """
    if path is None:
        return {}
    named = read_typed(
        path,
        _Named,
        error=SettingError,
        what="a list of experts",
        remedy='Give --protect a JSON file such as {"1": [68], "2": [92]}: decoder layer, experts.',
    )
    for layer, experts in named.items():
        if layer not in inventory.layers:
            raise SettingError(f"{path} protects experts of layer {layer}, which has none in this model.")
        count = inventory.layers[layer].num_experts
        if beyond := [expert for expert in experts if expert >= count]:
            raise SettingError(
                f"{path} protects expert {beyond[0]} of layer {layer}, which has {count}: "
                f"give ids from 0 to {count - 1}."
            )
    return {layer: frozenset(experts) for layer, experts in named.items() if experts}


def super_experts(evidence: Evidence) -> Protected:
    """Experts whose largest output stands out of all: above the 99.5th percentile, a tenth of the largest of all and
    ten times the median, in the first three quarters of the layers. Raises EvidenceError without that signal."""
    largest = evidence.of_experts(LARGEST)
    if not largest:
        raise EvidenceError(
            "--super-experts needs the largest activation of each expert, which the evidence does not have. Make it "
            "with: moeits calibrate MODEL --output signals.safetensors"
        )
    values = np.concatenate([*largest.values()])
    bound = max(
        np.quantile(values, _QUANTILE, method="lower"), _SHARE * values.max(), _ABOVE_MEDIAN * np.median(values)
    )
    early = sorted(largest)[: max(1, int(_FIRST_LAYERS * len(largest)))]
    found = {layer: frozenset(map(int, np.flatnonzero(largest[layer] >= bound))) for layer in early}
    return {layer: experts for layer, experts in found.items() if experts}


def together(*several: Protected) -> Protected:
    """Whatever one of them protects."""
    layers = sorted({layer for each in several for layer in each})
    return {layer: frozenset().union(*(each.get(layer, ()) for each in several)) for layer in layers}


def listed(protected: Protected) -> dict[str, list[int]]:
    """As plan.json has it."""
    return {str(layer): sorted(experts) for layer, experts in sorted(protected.items())}


def most_in_a_group(experts: Iterable[int], num_experts: int, groups: int) -> int:
    """How many of these experts the group with most of them has: so many stay in every group."""
    size = num_experts // groups
    per_group = [0] * groups
    for expert in experts:
        per_group[expert // size] += 1
    return max(per_group)
