"""The elimination orders of a run, as the page's slider cuts them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

from moeits.choosing.criteria import criterion_named
from moeits.choosing.elimination import EliminationOrder
from moeits.choosing.planner import Planner
from moeits.choosing.settings import Choice
from moeits.evidence import Evidence

TAU_STEP = 0.05


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The order of removal in every layer, and where the floors are."""

    evidence: Evidence
    criterion: str
    orders: Mapping[int, EliminationOrder]
    most_steps: Mapping[int, int]

    @classmethod
    def of(cls, evidence: Evidence, min_experts: int | None = None, criterion: str = "moeits") -> "Removal | None":
        """The orders of a criterion; no layer keeps fewer than `min_experts` experts, by default its top_k.

        None if the evidence lacks what the criterion needs, or if it has no levels for a dial to be moved along.
        """
        if any(
            layer not in evidence.known(name) for name in criterion_named(criterion).needs for layer in evidence.layers
        ):
            return None
        planner = Planner(evidence, Choice(criterion=criterion, min_experts=min_experts))
        if any(order.levels is None for order in planner.orders.values()):
            return None
        return cls(evidence=evidence, criterion=criterion, orders=planner.orders, most_steps=planner.most_steps)

    def kept_at(self, tau: float) -> dict[int, int]:
        """Number of experts kept in each layer at a tau."""
        return {
            layer: order.num_experts - min(order.steps_at(tau), self.most_steps[layer])
            for layer, order in self.orders.items()
        }

    def parameters_at(self, tau: float) -> int:
        """Parameters of the whole model left at a tau."""
        return self.evidence.inventory.sizes(self.kept_at(tau)).parameters

    def critical_taus(self, layer: int) -> list[float]:
        """For each step of a layer, down to its floor, the tau below which it is taken; falling."""
        order = self.orders[layer]
        steps = (order.levels or ())[: self.most_steps[layer]]
        return [(level - order.mean) / order.iqr for level in steps] if order.iqr > 0 else []

    def tau_range(self) -> tuple[float, float]:
        """The taus between which anything changes, rounded outwards to whole steps of the slider."""
        critical = [tau for layer in self.orders for tau in self.critical_taus(layer)] or [0.0]
        low, high = floor(min(critical) / TAU_STEP) * TAU_STEP, ceil(max(critical) / TAU_STEP + 1e-9) * TAU_STEP
        return round(low, 10), round(high, 10)

    def facts(self) -> dict[str, Any]:
        """All that the page needs to cut the orders itself."""
        return {
            "other_parameters": self.evidence.inventory.other_parameters,
            "other_bytes": self.evidence.inventory.other_bytes,
            "layers": [self._layer(layer) for layer in self.orders],
        }

    def _layer(self, layer: int) -> dict[str, Any]:
        order, facts = self.orders[layer], self.evidence.layers[layer]
        return {
            "layer": layer,
            "experts": order.num_experts,
            "most_steps": self.most_steps[layer],
            "mean": order.mean,
            "iqr": order.iqr,
            "removed": list(order.removed),
            "levels": list(order.levels or ()),
            "routed_parameters": facts.sizes.parameters,
            "parameters": facts.sizes.parameters + facts.sizes.router_parameters,
            "bytes": facts.sizes.nbytes + facts.sizes.router_nbytes,
        }
