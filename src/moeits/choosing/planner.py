"""Rank, share out, cut: the elimination orders of all layers, made once, of which every budget is a cut."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from moeits.choosing.allocations import Allocation, allocation_named
from moeits.choosing.criteria import Criterion, criterion_named, elimination_order, watches_tokens
from moeits.choosing.elimination import EliminationOrder
from moeits.choosing.limits import Bound, Limits
from moeits.choosing.protection import LARGEST, listed, named_by, super_experts, together
from moeits.choosing.pruning_plan import PruningPlan, check_groups
from moeits.choosing.settings import Budget, Choice, finite
from moeits.edits.in_order import check_known, edits_of, planned
from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.experts.inventory import Sizes
from moeits.settings import with_settings


class Planner:
    """Plans of one choice. Raises SettingError or EvidenceError as `plan` does."""

    def __init__(self, evidence: Evidence, choice: Choice | None = None) -> None:
        self.evidence = evidence
        self.choice = choice or Choice()
        self.criterion: Criterion = criterion_named(self.choice.criterion)
        check_known(edits_of(self.choice.edit, self.choice.of_edit()), evidence)
        self.named = named_by(self.choice.protect, evidence.inventory)
        self.super_experts = super_experts(evidence) if self._keeps_super_experts() else {}
        protected = together(self.named, self.super_experts)
        self.limits = Limits(evidence.inventory, self.choice, protected)
        self.most_steps = self.limits.most_steps
        rng = np.random.default_rng(self.choice.seed)
        self.orders: dict[int, EliminationOrder] = {
            layer: elimination_order(self.criterion, evidence, layer, rng, protected.get(layer, frozenset()))
            for layer in evidence.layers
        }

    def _keeps_super_experts(self) -> bool:
        if self.choice.super_experts is None:
            return watches_tokens(self.criterion) and bool(self.evidence.known(LARGEST))
        return self.choice.super_experts

    @with_settings
    def plan(self, *, budget: Budget) -> PruningPlan:
        """The plan of one budget; see the function `plan`."""
        if asked := self.limits.counts(budget):
            counts, facts = asked
            if self.choice.allocation is not None:
                raise SettingError("--allocation shares removals out among layers, but the counts are given already.")
            steps = {layer: self.evidence.layers[layer].num_experts - count for layer, count in counts.items()}
            return self._made(steps, facts, wanted=steps)
        if bound := self.limits.bound(budget):
            return self._within(bound)
        return self._at_tau(finite(budget.tau, "--tau"))

    # -------------------------------------------------------------------------------------- steps per layer

    def steps_at(self, at: float, allocation: Allocation | None = None) -> dict[int, int]:
        """How many experts of each layer go at a position of the dial, by default a tau; floors obeyed."""
        return self._limited((allocation or allocation_named("threshold")).steps(at, self.orders))

    def _limited(self, wanted: Mapping[int, int]) -> dict[int, int]:
        limited = {}
        for layer, facts in self.evidence.layers.items():
            steps = min(wanted[layer], self.most_steps[layer])
            limited[layer] = facts.num_experts - self.limits.rounded(layer, facts.num_experts - steps)
        return limited

    def sizes(self, steps: Mapping[int, int]) -> Sizes:
        """What is left when so many experts of each layer are gone."""
        return self.evidence.inventory.sizes(self._counts(steps))

    def _counts(self, steps: Mapping[int, int]) -> dict[int, int]:
        return {layer: facts.num_experts - steps[layer] for layer, facts in self.evidence.layers.items()}

    # -------------------------------------------------------------------------------------- budgets

    def _at_tau(self, tau: float) -> PruningPlan:
        if self.choice.allocation not in (None, "threshold"):
            raise SettingError(
                f"--tau is the dial of --allocation threshold, not of {self.choice.allocation}: give --reduction or "
                "--max-size."
            )
        threshold = allocation_named("threshold")
        self._check_needs(threshold, "--tau")
        wanted = threshold.steps(tau, self.orders)
        return self._made(self._limited(wanted), {"tau": tau}, wanted=wanted)

    def _within(self, bound: Bound) -> PruningPlan:
        allocation = allocation_named(self.choice.allocation or self.criterion.allocation)
        self._check_needs(allocation, f"--allocation {allocation.name}")
        low, high = allocation.range(self.orders, self.most_steps)
        self.limits.check_reachable(bound, self._counts(self.steps_at(low, allocation)))
        at = self._largest(bound, allocation, low, high)
        wanted = allocation.steps(at, self.orders)
        facts: dict[str, Any] = {bound.flag: bound.value, **({allocation.dial: at} if allocation.dial else {})}
        if allocation.name != "threshold":
            facts["allocation"] = allocation.name
        return self._made(self._limited(wanted), facts, wanted=wanted)

    def _largest(self, bound: Bound, allocation: Allocation, low: float, high: float) -> float:
        """The largest position whose cut meets a budget that is met at `low`, to the last bit.

        Kept sets are nested along the dial, so this is a bisection. A budget that removes nothing is met everywhere;
        then the answer is the end of the dial.
        """
        if bound.met(self.sizes(self.steps_at(high, allocation))):
            return high
        while (middle := low + (high - low) / 2) not in (low, high):
            met = bound.met(self.sizes(self.steps_at(middle, allocation)))
            low, high = (middle, high) if met else (low, middle)
        return low

    def _check_needs(self, allocation: Allocation, asked: str) -> None:
        orders = self.orders.values()
        if allocation.needs == "levels" and any(order.levels is None for order in orders):
            raise SettingError(
                f"{asked} is measured by scores, and --criterion {self.criterion.name} has none: give --reduction, "
                "--max-size, --experts-per-layer or --like."
            )
        if allocation.needs == "pairs" and any(order.pairs is None for order in orders):
            raise SettingError(
                f"{asked} goes by how redundant pairs are, which --criterion {self.criterion.name} does not look at: "
                "choose by moeits, chance-corrected, router-cosine, correlation, gaussian or aligned."
            )
        if allocation.needs == "scores" and any(order.scores is None for order in orders):
            raise SettingError(
                f"{asked} needs scores that add up, and those of --criterion {self.criterion.name} do not: choose by "
                "reap, ean-sum, ean-mean, frequency, router-score, dern or moe-i2."
            )

    # -------------------------------------------------------------------------------------- the plan itself

    def _made(self, steps: Mapping[int, int], budget: Mapping[str, Any], *, wanted: Mapping[int, int]) -> PruningPlan:
        kept = {layer: order.kept_after(steps[layer]) for layer, order in self.orders.items()}
        check_groups(kept, self.evidence.layers)
        settings = {**budget, "min_experts": self.choice.min_experts}
        if self.choice.multiple_of > 1:
            settings["multiple_of"] = self.choice.multiple_of
        settings |= {
            name: listed(experts)
            for name, experts in (("protected", self.named), ("super_experts", self.super_experts))
            if experts
        }
        if self.criterion.needs_seed:
            settings["seed"] = self.choice.seed
        if self.criterion.needs:
            settings |= {"estimator": self.evidence.estimator, **self.evidence.settings}
        floored = [layer for layer in self.orders if wanted[layer] > self.most_steps[layer]]
        summary = self.evidence.inventory.summary(self._counts(steps))
        return PruningPlan(
            model_type=self.evidence.model_type,
            source=self.evidence.source,
            fingerprint=self.evidence.fingerprint,
            criterion=self.criterion.name,
            settings=settings,
            kept=kept,
            order=self._orders_to_floor,
            summary={**summary, "floored_layers": floored, **self._above_noise, **self._unreached},
            layers=self.evidence.layers,
            coverage=self.evidence.inventory.coverage,
            family=self.evidence.inventory.family,
            edit=planned(self.choice.edit, self.choice.of_edit(), self.evidence, kept),
        )

    @cached_property
    def _orders_to_floor(self) -> dict[int, tuple[tuple[int, float | None], ...]]:
        def steps(order: EliminationOrder, most: int) -> tuple[tuple[int, float | None], ...]:
            levels = order.levels or (None,) * len(order.removed)
            # For a person: six digits. Who goes is said by the order.
            rounded = (level if level is None else float(f"{level:.6g}") for level in levels[:most])
            return tuple(zip(order.removed[:most], rounded, strict=True))

        return {
            layer: steps(order, self.most_steps[layer]) for layer, order in self.orders.items() if order.sets is None
        }

    @cached_property
    def _unreached(self) -> dict[str, Any]:
        """Experts of which watching tokens says nothing, since none of them was sent there."""
        shares = self.evidence.of_experts("frequency") if watches_tokens(self.criterion) else {}
        found = {layer: [int(e) for e in np.flatnonzero(share == 0)] for layer, share in shares.items()}
        unreached = {str(layer): experts for layer, experts in found.items() if experts}
        return {"unreached": unreached} if unreached else {}

    @cached_property
    def _above_noise(self) -> dict[str, Any]:
        return self.evidence.above_noise() if "redundancy" in self.criterion.needs else {}
