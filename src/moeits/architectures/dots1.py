"""dots.llm1: the first layers are dense; a selection bias, groups as in DeepSeek-V3."""

from moeits.architectures import Architecture
from moeits.architectures.deepseek_v3 import groups, is_moe_layer, least_per_group

ARCHITECTURE: Architecture = Architecture(
    model_type="dots1",
    blocks=("model.layers.{layer}.mlp",),
    projections={"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight", "gate.e_score_correction_bias"),
    shared=("shared_experts.",),
    num_experts_keys=("n_routed_experts",),
    is_moe_layer=is_moe_layer,
    groups=groups,
    least_per_group=least_per_group,
)
