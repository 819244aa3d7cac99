"""Phi-3.5-MoE: every layer has experts, named as Mixtral's; the router always picks two."""

from moeits.experts.architectures import Architecture, Config


def least_per_group(config: Config) -> int:  # noqa: ARG001
    """The router takes the best expert, then the best of the others, whatever the config says."""
    return 2


ARCHITECTURE: Architecture = Architecture(
    model_type="phimoe",
    blocks=("model.layers.{layer}.block_sparse_moe", "model.layers.{layer}.mlp"),
    projections={"gate": "w1.weight", "up": "w3.weight", "down": "w2.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight",),
    router_in_memory="router.weight",
    num_experts_keys=("num_local_experts",),
    least_per_group=least_per_group,
)
