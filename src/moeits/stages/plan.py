"""Redundancy x criterion x budget -> who stays. Every budget is a cut of the same elimination orders."""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moeits.choosing.criteria import Criterion, criterion_named, elimination_order
from moeits.choosing.elimination import EliminationOrder
from moeits.choosing.pruning_plan import PruningPlan, check_groups
from moeits.choosing.settings import Budget, Choice, finite, share
from moeits.errors import BudgetOutOfReach, PlanError
from moeits.evidence import Evidence
from moeits.experts.inventory import LayerFacts, Sizes
from moeits.files import check_file_output
from moeits.settings import with_settings
from moeits.sizes import format_size, parse_size


@with_settings
def plan(
    evidence: str | Path | Evidence,
    *,
    output: str | Path | None = None,
    budget: Budget,
    choice: Choice,
) -> PruningPlan:
    """Decide which experts stay, by exactly one of `tau`, `reduction`, `max_size`, `experts_per_layer` and `like`.

    Paper: Algorithm 3; method.md, section 2. `reduction` is the share of routed-expert parameters to remove at least;
    `max_size` bounds the bytes of tensors written; both solve for the largest tau that meets them. No layer keeps fewer
    experts than `min_experts`, by default its top_k. With `output` the plan is also written there.

    Raises SettingError for an argument that is out of range, BudgetOutOfReach if floors are reached first,
    EvidenceError for broken evidence, OutputError if the plan cannot be written.
    """
    if output is not None:
        check_file_output(Path(output), inputs=(evidence, budget.like))
    evidence = evidence if isinstance(evidence, Evidence) else Evidence.load(evidence)
    made = Planner(evidence, choice).plan(budget=budget)
    if output is not None:
        made.save(output)
    return made


_LARGEST_TAU = 1e100


class Planner:
    """The elimination orders of all layers, made once; every budget is then a cut of them.

    Raises SettingError or EvidenceError as `plan` does.
    """

    def __init__(self, evidence: Evidence, choice: Choice | None = None) -> None:
        choice = choice or Choice()
        self.evidence = evidence
        self.criterion: Criterion = criterion_named(choice.criterion)
        self.seed = choice.seed
        self.min_experts = choice.min_experts
        rng = np.random.default_rng(choice.seed)
        self.orders: dict[int, EliminationOrder] = {
            layer: elimination_order(self.criterion, evidence, layer, rng) for layer in evidence.layers
        }
        self.most_steps = {layer: facts.num_experts - self._floor(layer) for layer, facts in evidence.layers.items()}

    def _floor(self, layer: int) -> int:
        return self.evidence.layers[layer].fewest_experts(self.min_experts)

    @with_settings
    def plan(self, *, budget: Budget) -> PruningPlan:
        """The plan of one budget; see the function `plan`."""
        match budget.asked():
            case "tau", tau:
                tau = finite(tau, "--tau")
                return self._made(self.steps_at(tau), {"tau": tau}, wanted=self._wanted_at(tau))
            case "reduction", wanted:
                return self._by_reduction(share(wanted))
            case "max_size", most:
                return self._by_size(parse_size(most, "--max-size"))
            case "experts_per_layer", count:
                return self._by_count(count)
            case _, like:
                return self._like(like if isinstance(like, PruningPlan) else PruningPlan.load(like))

    # -------------------------------------------------------------------------------------- steps per layer

    def _wanted_at(self, tau: float) -> dict[int, int]:
        return {layer: order.steps_at(tau) for layer, order in self.orders.items()}

    def steps_at(self, tau: float) -> dict[int, int]:
        """How many experts of each layer go at this tau, floors obeyed."""
        return {layer: min(steps, self.most_steps[layer]) for layer, steps in self._wanted_at(tau).items()}

    def sizes(self, steps: Mapping[int, int]) -> Sizes:
        """What is left when so many experts of each layer are gone."""
        inventory = self.evidence.inventory
        return inventory.sizes({layer: count - steps[layer] for layer, count in inventory.num_experts.items()})

    # -------------------------------------------------------------------------------------- budgets

    def _by_reduction(self, wanted: float) -> PruningPlan:
        low, _ = self._tau_range
        best = self.sizes(self.steps_at(low)).reduction
        if best < wanted:
            raise BudgetOutOfReach(
                f"--reduction {wanted:g} is out of reach: {self._floors_sentence()} at most {best:.1%} of the "
                f"routed-expert parameters can go. Ask for {int(best * 1000) / 1000:g} or less"
                f"{self._lower_floor_hint()}."
            )
        tau = self._largest_tau(lambda steps: self.sizes(steps).reduction >= wanted, low)
        return self._made(self.steps_at(tau), {"reduction": wanted, "tau": tau}, wanted=self._wanted_at(tau))

    def _by_size(self, most: int) -> PruningPlan:
        low, _ = self._tau_range
        best = self.sizes(self.steps_at(low)).nbytes
        if best > most:
            raise BudgetOutOfReach(
                f"--max-size {format_size(most)} is out of reach: {self._floors_sentence()} at least "
                f"{format_size(best)} ({best} bytes) remain. Ask for that or more{self._lower_floor_hint()}."
            )
        tau = self._largest_tau(lambda steps: self.sizes(steps).nbytes <= most, low)
        return self._made(self.steps_at(tau), {"max_size": most, "tau": tau}, wanted=self._wanted_at(tau))

    def _by_count(self, count: int) -> PruningPlan:
        for layer, facts in self.evidence.layers.items():
            if not self._floor(layer) <= count <= facts.num_experts:
                raise BudgetOutOfReach(
                    f"--experts-per-layer {count} is out of reach: layer {layer} has {facts.num_experts} experts and "
                    f"keeps at least {self._floor(layer)}. Ask for a number between the two{self._lower_floor_hint()}."
                )
            _check_whole_groups(f"--experts-per-layer {count} was asked for", count, layer, facts)
        steps = {layer: facts.num_experts - count for layer, facts in self.evidence.layers.items()}
        return self._made(steps, {"experts_per_layer": count}, wanted=steps)

    def _like(self, other: PruningPlan) -> PruningPlan:
        if set(other.kept) != set(self.evidence.layers):
            raise PlanError(
                f"--like: that plan has layers {_ranges(other.kept)}, the evidence has {_ranges(self.evidence.layers)}."
            )
        steps = {}
        for layer, facts in self.evidence.layers.items():
            count = len(other.kept[layer])
            if not self._floor(layer) <= count <= facts.num_experts:
                raise BudgetOutOfReach(
                    f"--like: that plan keeps {count} experts in layer {layer}, which has {facts.num_experts} and "
                    f"keeps at least {self._floor(layer)}{self._lower_floor_hint()}."
                )
            _check_whole_groups(f"--like: that plan keeps {count} experts in layer {layer}", count, layer, facts)
            steps[layer] = facts.num_experts - count
        return self._made(steps, {"like": other.sha256}, wanted=steps)

    def _largest_tau(self, met: Callable[[Mapping[int, int]], bool], low: float) -> float:
        """The largest tau whose cut meets a budget that is met at `low`, to the last bit.

        Kept sets are nested in tau, so this is a bisection. A budget that removes nothing is met by every tau; then the
        answer is one above all critical taus.
        """
        _, high = self._tau_range
        if met(self.steps_at(high)):
            return high
        while (middle := low + (high - low) / 2) not in (low, high):
            low, high = (middle, high) if met(self.steps_at(middle)) else (low, middle)
        return low

    @cached_property
    def _tau_range(self) -> tuple[float, float]:
        """A tau below and one above all critical taus, (level - mean) / iqr, of layers that have a spread."""
        critical = [
            (level - order.mean) / order.iqr
            for layer, order in self.orders.items()
            if order.iqr > 0 and order.levels is not None
            for level in order.levels[: self.most_steps[layer]]
        ]
        # Scores may be such that these overflow; then no tau tells such steps apart.
        low, high = np.clip((min(critical, default=0.0), max(critical, default=0.0)), -_LARGEST_TAU, _LARGEST_TAU)
        low, high = float(low), float(high)
        return low - 1 - 1e-6 * abs(low), high + 1 + 1e-6 * abs(high)

    def _floors_sentence(self) -> str:
        if self.min_experts is not None or any(facts.groups > 1 for facts in self.evidence.layers.values()):
            floors = sorted(set(map(self._floor, self.orders)))
            return f"with at least {'/'.join(map(str, floors))} experts in each of {len(self.orders)} layers"
        top_ks = sorted({facts.top_k for facts in self.evidence.layers.values()})
        return f"with top_k={'/'.join(map(str, top_ks))} in each of {len(self.orders)} layers"

    def _lower_floor_hint(self) -> str:
        lower = any(self._floor(layer) > facts.fewest_experts(1) for layer, facts in self.evidence.layers.items())
        return ", or lower the floor with --min-experts" if lower else ""

    # -------------------------------------------------------------------------------------- the plan itself

    def _made(self, steps: Mapping[int, int], budget: Mapping[str, Any], *, wanted: Mapping[int, int]) -> PruningPlan:
        kept = {layer: order.kept_after(steps[layer]) for layer, order in self.orders.items()}
        check_groups(kept, self.evidence.layers)
        settings = {**budget, "min_experts": self.min_experts}
        if self.criterion.needs_seed:
            settings["seed"] = self.seed
        if self.criterion.needs_redundancy:
            settings |= {"estimator": self.evidence.estimator, **self.evidence.settings}
        floored = [layer for layer in self.orders if wanted[layer] > self.most_steps[layer]]
        summary = {
            **self.evidence.inventory.summary({layer: len(experts) for layer, experts in kept.items()}),
            "floored_layers": floored,
            **self._above_noise,
        }
        return PruningPlan(
            model_type=self.evidence.model_type,
            source=self.evidence.source,
            fingerprint=self.evidence.fingerprint,
            criterion=self.criterion.name,
            settings=settings,
            kept=kept,
            order=self._orders_to_floor,
            summary=summary,
            layers=self.evidence.layers,
        )

    @cached_property
    def _orders_to_floor(self) -> dict[int, tuple[tuple[int, float | None], ...]]:
        def steps(order: EliminationOrder, most: int) -> tuple[tuple[int, float | None], ...]:
            levels = order.levels or (None,) * len(order.removed)
            # For a person: six digits. Who goes is said by the order.
            rounded = (level if level is None else float(f"{level:.6g}") for level in levels[:most])
            return tuple(zip(order.removed[:most], rounded, strict=True))

        return {layer: steps(order, self.most_steps[layer]) for layer, order in self.orders.items()}

    @cached_property
    def _above_noise(self) -> dict[str, Any]:
        return self.evidence.above_noise() if self.criterion.needs_redundancy else {}


def _check_whole_groups(wrong: str, count: int, layer: int, facts: LayerFacts) -> None:
    """A count that leaves each group of a router as many experts. Raises BudgetOutOfReach, beginning with `wrong`."""
    if count % facts.groups:
        near = max(count // facts.groups, 1) * facts.groups
        raise BudgetOutOfReach(
            f"{wrong}, but the router of layer {layer} chooses among {facts.groups} groups of experts, which must stay "
            f"of equal size. Ask for a multiple of {facts.groups}, such as {near}."
        )


def _ranges(layers: Iterable[int]) -> str:
    ordered = sorted(layers)
    return f"{ordered[0]} to {ordered[-1]} ({len(ordered)})" if ordered else "none"
