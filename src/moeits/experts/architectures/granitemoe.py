"""Granite 3 MoE (1B-A400M, 3B-A800M): experts fused only, under the names of two linear layers."""

from moeits.experts.architectures import Architecture

ARCHITECTURE: Architecture = Architecture(
    model_type="granitemoe",
    blocks=("model.layers.{layer}.block_sparse_moe",),
    fused={"input_linear.weight": ("gate", "up"), "output_linear.weight": ("down",)},
    router=("router.layer.weight",),
    num_experts_keys=("num_local_experts",),
)
