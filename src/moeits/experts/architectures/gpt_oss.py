"""gpt-oss (20B, 120B): experts fused only, with biases, gate and up in alternating columns."""

from moeits.experts.architectures import Architecture

ARCHITECTURE: Architecture = Architecture(
    model_type="gpt_oss",
    blocks=("model.layers.{layer}.mlp",),
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    stacking="alternating columns",
    router=("router.weight", "router.bias"),
    num_experts_keys=("num_local_experts",),
)
