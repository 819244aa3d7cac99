"""Qwen3-Next (80B-A3B): as Qwen2-MoE, in layers of two kinds of attention."""

from moeits.architectures import Architecture
from moeits.architectures.qwen2_moe import is_moe_layer

ARCHITECTURE: Architecture = Architecture(
    model_type="qwen3_next",
    blocks=("model.layers.{layer}.mlp",),
    projections={"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight",),
    shared=("shared_expert.", "shared_expert_gate."),
    num_experts_keys=("num_experts",),
    is_moe_layer=is_moe_layer,
)
