"""How experts are ranked: one file per criterion, each turning evidence into an elimination order per layer.

Budgets, floors and plans are the same for all of them. To add one: write its file and add its value to `CRITERIA`
(docs/extending.md).
"""

from collections.abc import Collection
from typing import Protocol

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.errors import EvidenceError, SettingError
from moeits.evidence import Evidence
from moeits.settings import one_named
from moeits.signals import SIGNALS
from moeits.signals.watched import flag_of


class Criterion(Protocol):
    """A rule of removal.

    One that has no levels for a tau may say so before it is asked (`has_levels = False`), and one that is not what its
    name promises has a `caveat`, which all tables show beside the name.
    """

    @property
    def name(self) -> str:
        """As `--criterion` has it."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What it must know of the experts: "redundancy", or names of signals; nothing if headers are enough."""

    @property
    def needs_seed(self) -> bool:
        """True for a criterion whose choice is random; its seed is then part of the plan's settings."""

    @property
    def allocation(self) -> str:
        """How its removals are shared out among layers, unless another allocation is asked for."""

    @property
    def chosen(self) -> str:
        """What the experts that it removes are called on a card, such as "redundant" or "of little weight"."""

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:
        """The elimination order of one layer, to the last expert. What it needs is there."""


from moeits.choosing.criteria import (  # noqa: E402
    aimer,
    aligned,
    c_gnn,
    chance_corrected,
    correlation,
    dern,
    ean_mean,
    ean_sum,
    frequency,
    gaussian,
    moe_i2,
    moe_i2_genetic,
    moeits,
    mop,
    naee,
    order,
    random,
    reap,
    reconstruction,
    router_cosine,
    router_norm,
    router_score,
    stun,
    weight_norm,
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
    naee.CRITERION,
    order.CRITERION,
    aimer.CRITERION,
    weight_norm.CRITERION,
    router_norm.CRITERION,
    router_cosine.CRITERION,
    correlation.CRITERION,
    gaussian.CRITERION,
    aligned.CRITERION,
    stun.CRITERION,
    dern.CRITERION,
    moe_i2.CRITERION,
    moe_i2_genetic.CRITERION,
    mop.CRITERION,
    c_gnn.CRITERION,
)


def elimination_order(
    criterion: Criterion,
    evidence: Evidence,
    layer: int,
    rng: np.random.Generator,
    protected: Collection[int] = (),
) -> EliminationOrder:
    """The order of a criterion in a layer without those `protected`, in rounds of one expert per group where the router
    is limited by groups.

    Raises EvidenceError if the criterion needs scores and there are none, SettingError if it chooses a set for each
    count and some experts must stay, or groups be of equal size.
    """
    for name in criterion.needs:
        if layer not in evidence.known(name):
            raise EvidenceError(
                f"--criterion {criterion.name} needs {name}, and the evidence has none of layer {layer}. "
                f"Make it with: {made_by(name)}"
            )
    order = criterion.rank(evidence, layer, rng)
    if order.sets is not None and (protected or evidence.layers[layer].groups > 1):
        raise SettingError(_not_free(criterion.name, layer, evidence.layers[layer].groups))
    return order.without(protected).by_groups(evidence.layers[layer].groups)


def _not_free(name: str, layer: int, groups: int) -> str:
    """Why a criterion that chooses a set for each count has none for a layer."""
    if groups > 1:
        return (
            f"--criterion {name} chooses a set of experts for each count, and the router of layer {layer} is limited "
            f"to {groups} groups, which must stay of equal size: choose by reconstruction or router-cosine."
        )
    return (
        f"--criterion {name} chooses a set of experts for each count, whoever is in it, so it protects nobody in layer "
        f"{layer}: leave --protect out and give --no-super-experts, or choose by reconstruction or router-cosine."
    )


def shown_name(name: str) -> str:
    """A criterion as tables show it: with what a reader must not miss, such as that it is a reconstruction."""
    caveat = caveat_of(name)
    return f"{name} ({caveat})" if caveat else name


def caveat_of(name: str) -> str:
    """What a reader must not miss of a criterion, where there is anything."""
    return next((getattr(each, "caveat", "") for each in CRITERIA if each.name == name), "")


def watches_tokens(criterion: Criterion) -> bool:
    """Whether it needs what only calibrating finds."""
    return bool(set(criterion.needs) - {"redundancy", *(signal.name for signal in SIGNALS)})


def made_by(name: str) -> str:
    """The command that finds what a criterion needs."""
    if name == "redundancy":
        return "moeits score MODEL --output evidence.safetensors"
    if name in {signal.name for signal in SIGNALS}:
        return f"moeits score MODEL --signals {name} --output evidence.safetensors"
    asked = "--statistics ORDER.jsonl" if name == "order" else flag_of(name)
    return f"moeits calibrate MODEL {asked + ' ' if asked else ''}--output signals.safetensors"


def criterion_named(name: str) -> Criterion:
    """The criterion of that name. Raises SettingError if there is none, with the nearest known name."""
    return one_named(name, CRITERIA, "criterion")
