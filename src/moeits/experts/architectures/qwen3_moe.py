"""Qwen3-MoE (30B-A3B, 235B-A22B): as Qwen2-MoE without the shared expert.

transformers writes the count under `num_local_experts` where the files on the hub have `num_experts`.
"""

from moeits.experts.architectures import Architecture
from moeits.experts.architectures.qwen2_moe import is_moe_layer

ARCHITECTURE: Architecture = Architecture(
    model_type="qwen3_moe",
    blocks=("model.layers.{layer}.mlp",),
    projections={"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight",),
    num_experts_keys=("num_experts", "num_local_experts"),
    is_moe_layer=is_moe_layer,
)
