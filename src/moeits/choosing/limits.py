"""How far down each layer may go, and whether a budget can be met there: known from headers, before any score."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, gcd, lcm
from typing import Any

from moeits.choosing.protection import Protected, most_in_a_group
from moeits.choosing.pruning_plan import PruningPlan
from moeits.choosing.settings import Budget, Choice, finite, share
from moeits.errors import BudgetOutOfReach, PlanError
from moeits.experts.inventory import Inventory, LayerFacts, Sizes
from moeits.sizes import format_size, parse_size


@dataclass(frozen=True)
class Bound:
    """A budget that says what is left, and not where: met or not by sizes alone."""

    flag: str
    value: Any
    """As plan.json has it."""

    def met(self, sizes: Sizes) -> bool:
        """Whether so much, or less, is left."""
        return sizes.reduction >= self.value if self.flag == "reduction" else sizes.nbytes <= self.value


@dataclass(frozen=True)
class Limits:
    """The floors of a checkpoint under a choice."""

    inventory: Inventory
    choice: Choice
    protected: Protected = field(default_factory=dict)

    def unit(self, layer: int) -> int:
        """What the count of a layer is a multiple of, unless the layer stays whole."""
        return lcm(self.inventory.layers[layer].groups, self.choice.multiple_of)

    def fewest(self, layer: int) -> int:
        """The fewest experts that a layer keeps."""
        facts = self.inventory.layers[layer]
        protected = most_in_a_group(self.protected.get(layer, ()), facts.num_experts, facts.groups) * facts.groups
        return self.rounded(layer, max(facts.fewest_experts(self.choice.min_experts), protected))

    def rounded(self, layer: int, count: int) -> int:
        """The next count from here on that the layer may have."""
        unit = self.unit(layer)
        return min(-(-count // unit) * unit, self.inventory.layers[layer].num_experts)

    @property
    def most_steps(self) -> dict[int, int]:
        """How many experts of each layer may go."""
        return {layer: facts.num_experts - self.fewest(layer) for layer, facts in self.inventory.layers.items()}

    def bound(self, budget: Budget) -> Bound | None:
        """The budget as what is left; None where it is a tau or counts. Raises SettingError."""
        match budget.asked():
            case "reduction", wanted:
                return Bound("reduction", share(wanted))
            case "max_size", most:
                return Bound("max_size", parse_size(most, "--max-size"))
        return None

    def counts(self, budget: Budget) -> tuple[dict[int, int], dict[str, Any]] | None:
        """The counts that a budget asks for outright, and what plan.json says of it; None where it asks for no counts.

        Raises BudgetOutOfReach, or PlanError if the plan it should be like is of other layers.
        """
        match budget.asked():
            case "experts_per_layer", count:
                counts = dict.fromkeys(self.inventory.layers, count)
                for layer in counts:
                    self._check_count(layer, count)
                return counts, {"experts_per_layer": count}
            case "like", plan:
                other = plan if isinstance(plan, PruningPlan) else PruningPlan.load(plan)
                return self._like(other), {"like": other.sha256}
        return None

    def check(self, budget: Budget) -> None:
        """What can be said of a budget before there are scores. Raises what planning raises."""
        if self.counts(budget) is None and (bound := self.bound(budget)):
            self.check_reachable(bound, {layer: self.fewest(layer) for layer in self.inventory.layers})
        if budget.tau is not None:
            finite(budget.tau, "--tau")

    def check_reachable(self, bound: Bound, fewest: Mapping[int, int]) -> None:
        """The budget is met where every layer keeps that few. Raises BudgetOutOfReach."""
        least = self.inventory.sizes(fewest)
        if bound.met(least):
            return
        if bound.flag == "reduction":
            raise BudgetOutOfReach(
                f"--reduction {bound.value:g} is out of reach: {self._floors_sentence()} at most {least.reduction:.1%} "
                f"of the routed-expert parameters can go. Ask for {int(least.reduction * 1000) / 1000:g} or less"
                f"{self._lower_floor_hint()}."
            )
        raise BudgetOutOfReach(
            f"--max-size {format_size(bound.value)} is out of reach: {self._floors_sentence()} at least "
            f"{format_size(least.nbytes)} ({least.nbytes} bytes) remain. Ask for that or more"
            f"{self._lower_floor_hint()}."
        )

    def _like(self, other: PruningPlan) -> dict[int, int]:
        if set(other.kept) != set(self.inventory.layers):
            raise PlanError(
                f"--like: that plan has layers {_ranges(other.kept)}, this model has {_ranges(self.inventory.layers)}."
            )
        for layer, facts in self.inventory.layers.items():
            count = other.counts[layer]
            if not self.fewest(layer) <= count <= facts.num_experts:
                raise BudgetOutOfReach(
                    f"--like: that plan keeps {count} experts in layer {layer}, which has {facts.num_experts} and "
                    f"keeps at least {self.fewest(layer)}{self._lower_floor_hint()}."
                )
            self._check_unit(f"--like: that plan keeps {count} experts in layer {layer}", count, layer)
        return {layer: other.counts[layer] for layer in self.inventory.layers}

    def _check_count(self, layer: int, count: int) -> None:
        facts = self.inventory.layers[layer]
        if not self.fewest(layer) <= count <= facts.num_experts:
            raise BudgetOutOfReach(
                f"--experts-per-layer {count} is out of reach: layer {layer} has {facts.num_experts} experts and "
                f"keeps at least {self.fewest(layer)}. Ask for a number between the two{self._lower_floor_hint()}."
            )
        self._check_unit(f"--experts-per-layer {count} was asked for", count, layer)

    def _check_unit(self, wrong: str, count: int, layer: int) -> None:
        """A count that leaves each group of a router as many experts, and is a multiple of what was asked for."""
        facts = self.inventory.layers[layer]
        if count % facts.groups:
            near = max(count // facts.groups, 1) * facts.groups
            raise BudgetOutOfReach(
                f"{wrong}, but the router of layer {layer} chooses among {facts.groups} groups of experts, which must "
                f"stay of equal size. Ask for a multiple of {facts.groups}, such as {near}."
            )
        if count != self.rounded(layer, count):
            raise BudgetOutOfReach(f"{wrong}, which is not a multiple of {self.unit(layer)} (--multiple-of).")

    def _floors_sentence(self) -> str:
        layers = self.inventory.layers
        plain = self.choice.min_experts is None and self.choice.multiple_of == 1 and not self.protected
        if not plain or any(facts.groups > 1 for facts in layers.values()):
            floors = sorted({self.fewest(layer) for layer in layers})
            return f"with at least {'/'.join(map(str, floors))} experts in each of {len(layers)} layers"
        top_ks = sorted({facts.top_k for facts in layers.values()})
        return f"with top_k={'/'.join(map(str, top_ks))} in each of {len(layers)} layers"

    def _lower_floor_hint(self) -> str:
        protected = ", or protect fewer experts" if self.protected else ""
        lower = any(
            self.fewest(layer) > self.rounded(layer, facts.fewest_experts(1))
            for layer, facts in self.inventory.layers.items()
        )
        return (", or lower the floor with --min-experts" if lower else "") + protected


def _ranges(layers: Iterable[int]) -> str:
    ordered = sorted(layers)
    return f"{ordered[0]} to {ordered[-1]} ({len(ordered)})" if ordered else "none"


def removed_by(
    facts: Mapping[int, LayerFacts], total: int, reduction: float | str | None, max_size: str | int | None
) -> tuple[int, int]:
    """(experts that go, bytes of each) where a budget takes them from a checkpoint of `total` bytes."""
    groups = gcd(*(layer.groups for layer in facts.values()))
    each = max(layer.sizes.nbytes + layer.sizes.router_nbytes for layer in facts.values())
    if reduction is not None:
        removed = ceil(share(reduction) * sum(layer.num_experts for layer in facts.values()) - 1e-9)
    else:
        removed = max(0, ceil((total - parse_size(max_size or 0, "--max-size")) / each))
    return ceil(removed / groups) * groups, each
