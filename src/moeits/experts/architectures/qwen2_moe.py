"""Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): routed experts beside one gated shared expert."""

from moeits.experts.architectures import Architecture, Config


def is_moe_layer(config: Config, layer: int) -> bool:
    """Every `decoder_sparse_step`-th layer, except those listed as dense."""
    return (
        layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % config.get("decoder_sparse_step", 1) == 0
    )


ARCHITECTURE: Architecture = Architecture(
    model_type="qwen2_moe",
    blocks=("model.layers.{layer}.mlp",),
    projections={"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight",),
    shared=("shared_expert.", "shared_expert_gate."),
    num_experts_keys=("num_experts",),
    is_moe_layer=is_moe_layer,
)
