"""OLMoE (1B-7B): every layer has experts; no shared experts."""

from moeits.experts.architectures import Architecture

ARCHITECTURE: Architecture = Architecture(
    model_type="olmoe",
    blocks=("model.layers.{layer}.mlp",),
    projections={"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight",),
    num_experts_keys=("num_experts",),
)
