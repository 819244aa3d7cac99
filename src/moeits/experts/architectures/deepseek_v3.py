"""DeepSeek-V3 (V3, R1): as DeepSeek-V2, but the router chooses with a bias, among groups judged by their best two."""

from math import ceil

from moeits.experts.architectures import Architecture, Config
from moeits.experts.architectures.deepseek_v2 import is_moe_layer


def groups(config: Config) -> int:
    """`n_group`: the router always asks for groups, even for a single one."""
    return int(config.get("n_group") or 1)


def least_per_group(config: Config) -> int:
    """Two, by which a group is judged; and together the chosen groups must have the `top_k` experts of a token."""
    each = ceil(config["num_experts_per_tok"] / int(config.get("topk_group") or 1))
    return max(2, each if groups(config) > 1 else 1)


ARCHITECTURE: Architecture = Architecture(
    model_type="deepseek_v3",
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
