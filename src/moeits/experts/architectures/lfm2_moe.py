"""LFM2-MoE (8B-A1B): the first layers are dense; a selection bias."""

from moeits.experts.architectures import Architecture, Config


def is_moe_layer(config: Config, layer: int) -> bool:
    """All layers from `num_dense_layers` on."""
    return layer >= config.get("num_dense_layers", 2)


ARCHITECTURE: Architecture = Architecture(
    model_type="lfm2_moe",
    blocks=("model.layers.{layer}.feed_forward",),
    projections={"gate": "w1.weight", "up": "w3.weight", "down": "w2.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight", "expert_bias"),
    num_experts_keys=("num_experts",),
    is_moe_layer=is_moe_layer,
)
