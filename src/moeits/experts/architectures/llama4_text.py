"""Llama 4 (its text model by itself): experts fused only, in columns, beside a shared one."""

from moeits.experts.architectures import Architecture, Config


def is_moe_layer(config: Config, layer: int) -> bool:
    """The layers that are listed, else every `interleave_moe_layer_step`-th."""
    listed = config.get("moe_layers")
    return layer in listed if listed is not None else (layer + 1) % config.get("interleave_moe_layer_step", 1) == 0


ARCHITECTURE: Architecture = Architecture(
    model_type="llama4_text",
    blocks=("model.layers.{layer}.feed_forward",),
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    stacking="columns",
    router=("router.weight",),
    shared=("shared_expert.",),
    num_experts_keys=("num_local_experts",),
    is_moe_layer=is_moe_layer,
)
