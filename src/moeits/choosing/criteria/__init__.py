"""Who goes first: one file per criterion, each turning evidence into an elimination order per layer.

Budgets, floors and plans are the same for all of them. To add one: write its file and add its value to `CRITERIA`
(docs/extending.md).
"""

import difflib
from typing import ClassVar, Protocol

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.errors import EvidenceError, SettingError
from moeits.evidence import Evidence


class Criterion(Protocol):
    """A rule of removal."""

    name: ClassVar[str]
    needs_redundancy: ClassVar[bool]
    """False for a criterion that can plan from the headers of a checkpoint alone."""
    needs_seed: ClassVar[bool]
    """True for a criterion whose choice is random; its seed is then part of the plan's settings."""

    chosen: ClassVar[str]
    """What the experts that it removes are called on a card, such as "redundant"."""

    def order(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        """The elimination order of one layer, to the last expert. Scores are there if it needs them."""


from moeits.choosing.criteria import (  # noqa: E402
    chance_corrected,
    ean_mean,
    ean_sum,
    frequency,
    moeits,
    random,
    reap,
    reconstruction,
    router_score,
)

CRITERIA: tuple[Criterion, ...] = (
    moeits.CRITERION,
    random.CRITERION,
    chance_corrected.CRITERION,
    reap.CRITERION,
    ean_mean.CRITERION,
    ean_sum.CRITERION,
    frequency.CRITERION,
    router_score.CRITERION,
    reconstruction.CRITERION,
)


def elimination_order(
    criterion: Criterion, evidence: Evidence, layer: int, rng: np.random.Generator
) -> EliminationOrder:
    """The order of a criterion in a layer, in rounds of one expert per group where the router is limited by groups.

    Raises EvidenceError if the criterion needs scores and there are none.
    """
    if criterion.needs_redundancy and layer not in evidence.redundancy:
        raise EvidenceError(f"The evidence has no redundancy of layer {layer}. Score the model again.")
    return criterion.order(evidence, layer, rng).by_groups(evidence.layers[layer].groups)


def criterion_named(name: str) -> Criterion:
    """The criterion of that name. Raises SettingError if there is none, with the nearest known name."""
    known = {criterion.name: criterion for criterion in CRITERIA}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"There is no criterion {name!r}.{hint} Known: {', '.join(known)}.")
    return known[name]
