"""DeepSeek-V2 (V2-Lite, V2): the first layers are dense, the others have routed and shared experts."""

from math import ceil

from moeits.experts.architectures import Architecture, Config


def is_moe_layer(config: Config, layer: int) -> bool:
    """All layers from `first_k_dense_replace` on (every `moe_layer_freq`-th of them in configs that have the key)."""
    return layer >= config.get("first_k_dense_replace", 0) and layer % (config.get("moe_layer_freq") or 1) == 0


def groups(config: Config) -> int:
    """`n_group` where the router really is limited by groups (V2), else 1 (V2-Lite is greedy)."""
    limited = config.get("topk_method") == "group_limited_greedy"
    return int(config.get("n_group") or 1) if limited else 1


def least_per_group(config: Config) -> int:
    """A token's `top_k` experts come from `topk_group` groups, which together must hold at least `top_k`."""
    return 1 if groups(config) == 1 else ceil(config["num_experts_per_tok"] / int(config["topk_group"] or 1))


ARCHITECTURE: Architecture = Architecture(
    model_type="deepseek_v2",
    blocks=("model.layers.{layer}.mlp",),
    projections={"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight",),
    shared=("shared_experts.",),
    num_experts_keys=("n_routed_experts",),
    is_moe_layer=is_moe_layer,
    groups=groups,
    least_per_group=least_per_group,
)
