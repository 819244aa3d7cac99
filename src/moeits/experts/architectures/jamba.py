"""Jamba (Mini, Large): some layers have experts, and some layers are not attention."""

from moeits.experts.architectures import Architecture, Config


def is_moe_layer(config: Config, layer: int) -> bool:
    """Every `expert_layer_period`-th layer, from `expert_layer_offset` on."""
    return layer % config.get("expert_layer_period", 2) == config.get("expert_layer_offset", 1)


def least_per_group(config: Config) -> int:  # noqa: ARG001
    """A layer of one expert is another kind of layer, without a router."""
    return 2


ARCHITECTURE: Architecture = Architecture(
    model_type="jamba",
    blocks=("model.layers.{layer}.feed_forward",),
    projections={"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("router.weight",),
    num_experts_keys=("num_experts",),
    is_moe_layer=is_moe_layer,
    least_per_group=least_per_group,
)
