"""MiniMax-Text-01 (in transformers' format): every layer has experts, named as Mixtral's."""

from moeits.experts.architectures import Architecture

ARCHITECTURE: Architecture = Architecture(
    model_type="minimax",
    blocks=("model.layers.{layer}.block_sparse_moe", "model.layers.{layer}.mlp"),
    projections={"gate": "w1.weight", "up": "w3.weight", "down": "w2.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight",),
    num_experts_keys=("num_local_experts",),
)
