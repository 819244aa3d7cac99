"""One MoE layer of a checkpoint: whose each of its tensors is, by name."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExpertSizes:
    """What one routed expert of a layer weighs, its router row apart."""

    parameters: int
    nbytes: int
    router_parameters: int
    router_nbytes: int


@dataclass(frozen=True, kw_only=True)
class BlockTensors:
    """The tensors of one MoE block."""

    block: str
    """Name of the MoE block, with its trailing dot."""
    within: tuple[str, ...]
    """What the names of its tensors begin with: the block's, or more where other modules are beside the experts."""
    experts: Mapping[int, Mapping[str, str]]
    """Expert -> what follows its number -> tensor name. Empty in a fused layer."""
    fused: Mapping[str, str]
    """Name in the architecture -> tensor name. Empty in a layer of per-expert tensors."""
    router: Mapping[str, int]
    """Tensor name -> the axis of the experts."""
    shared: tuple[str, ...]
    extra: Mapping[str, int]
    """Tensors of the router that have entries behind those of the experts -> how many. They stay."""

    @property
    def expert_axes(self) -> dict[str, int]:
        """Tensors that hold something of every expert -> the axis of the experts in them."""
        return {**self.router, **dict.fromkeys(self.fused.values(), 0)}


@dataclass(frozen=True, kw_only=True)
class MoELayer(BlockTensors):
    """The experts of one decoder layer."""

    index: int
    num_experts: int
    top_k: int
    groups: int
    least_per_group: int
    """Experts that each group, or the layer if it has no groups, must keep."""
    sizes: ExpertSizes
