"""What a checkpoint is made of, from headers alone: enough for every floor, every budget and every size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from moeits.checkpoint.fingerprints import Coverage
from moeits.checkpoint.reading import Checkpoint
from moeits.experts.counting import parameters_of
from moeits.experts.families import Architecture, recorded_family
from moeits.experts.layer import ExpertSizes
from moeits.experts.layout import MoELayout

# No layer of any model comes near; what a file claims beyond is not believed.
MOST_EXPERTS = 65536
_Few = Annotated[int, Meta(ge=1, le=MOST_EXPERTS)]


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What planning needs to know of one MoE layer."""

    num_experts: _Few
    top_k: _Few
    groups: _Few
    """Groups of experts that limit the choice of the router; 1 where nothing does."""
    sizes: ExpertSizes
    least_per_group: _Few = 1
    """Experts without which a group, and with it the router, does not work."""

    def fewest_experts(self, min_experts: int | None = None) -> int:
        """The fewest experts that the layer may keep: `min_experts`, by default top_k, as whole groups."""
        wanted = -(-(min_experts or self.top_k) // self.groups)  # of any length: a float would overflow
        per_group = max(wanted, self.least_per_group)
        return min(per_group * self.groups, self.num_experts)

    def contradiction(self) -> str | None:
        """What cannot be true of any layer, as the end of a sentence; None if all of it can be."""
        if self.num_experts % self.groups:
            return f"{self.num_experts} experts cannot be in {self.groups} equal groups"
        sizes = self.sizes
        if min(sizes.parameters, sizes.nbytes) < 1 or min(sizes.router_parameters, sizes.router_nbytes) < 0:
            return "an expert must have parameters"
        return None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is left of a checkpoint that keeps some experts; tensors only, headers not counted."""

    experts: int
    parameters: int
    nbytes: int
    reduction: float
    """P(down): removed routed-expert parameters as a share of all routed-expert parameters."""
    reduction_of_all: float
    """Removed parameters as a share of all parameters."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The facts of a checkpoint."""

    model_type: str
    source: str
    fingerprint: str
    layers: Mapping[int, LayerFacts]
    other_parameters: int
    """Parameters of everything but routed experts and their router rows."""
    other_bytes: int
    coverage: Coverage | None = None
    """How much of the weights the fingerprint has seen; None where a file of 0.1 does not say."""
    family: Architecture | None = None
    """The description that a user gave of the family; None where moeits has its own."""

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        layout: MoELayout,
        *,
        fingerprint: str | None = None,
        coverage: Coverage | None = None,
    ) -> "Inventory":
        """The inventory of an opened checkpoint, whose fingerprint is taken from its tensors if it is not given."""
        layers = {
            i: LayerFacts(
                num_experts=moe.num_experts,
                top_k=moe.top_k,
                groups=moe.groups,
                sizes=moe.sizes,
                least_per_group=moe.least_per_group,
            )
            for i, moe in layout.layers.items()
        }
        routed = [(facts.num_experts, facts.sizes) for facts in layers.values()]
        return cls(
            model_type=layout.architecture.model_type,
            source=checkpoint.source,
            fingerprint=checkpoint.fingerprint if fingerprint is None else fingerprint,
            layers=layers,
            other_parameters=sum(parameters_of(checkpoint).values())
            - sum(n * (s.parameters + s.router_parameters) for n, s in routed),
            other_bytes=checkpoint.nbytes - sum(n * (s.nbytes + s.router_nbytes) for n, s in routed),
            coverage=checkpoint.coverage() if coverage is None else coverage,
            family=recorded_family(checkpoint.config),
        )

    @property
    def num_experts(self) -> dict[int, int]:
        """Experts of each layer."""
        return {layer: facts.num_experts for layer, facts in self.layers.items()}

    def fewest_experts(self, min_experts: int | None = None) -> dict[int, int]:
        """The floor of each layer, in experts."""
        return {layer: facts.fewest_experts(min_experts) for layer, facts in self.layers.items()}

    def sizes(self, counts: Mapping[int, int]) -> Sizes:
        """What is left with that many experts in each layer."""
        parameters, nbytes, routed, routed_before, all_before = self.other_parameters, self.other_bytes, 0, 0, 0
        for layer, facts in self.layers.items():
            count, each = counts[layer], facts.sizes
            parameters += count * (each.parameters + each.router_parameters)
            nbytes += count * (each.nbytes + each.router_nbytes)
            routed += count * each.parameters
            routed_before += facts.num_experts * each.parameters
            all_before += facts.num_experts * (each.parameters + each.router_parameters)
        all_before += self.other_parameters
        return Sizes(
            experts=sum(counts[layer] for layer in self.layers),
            parameters=parameters,
            nbytes=nbytes,
            reduction=(routed_before - routed) / routed_before,
            reduction_of_all=(all_before - parameters) / all_before,
        )

    def summary(self, counts: Mapping[int, int]) -> dict[str, Any]:
        """Sizes before and after, as plan.json has them (method.md, section 2)."""
        before, after = self.sizes(self.num_experts), self.sizes(counts)
        return {
            "experts_before": before.experts,
            "experts_kept": after.experts,
            "parameters_before": before.parameters,
            "parameters_after": after.parameters,
            "bytes_before": before.nbytes,
            "bytes_after": after.nbytes,
            "reduction": after.reduction,
            "reduction_of_all": after.reduction_of_all,
        }
