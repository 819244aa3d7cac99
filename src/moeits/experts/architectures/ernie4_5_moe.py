"""ERNIE 4.5 (text models): a selection bias of shape (1, E), which moves into the router in memory."""

from moeits.experts.architectures import Architecture, Config

BIAS = "moe_statics.e_score_correction_bias"


def is_moe_layer(config: Config, layer: int) -> bool:
    """Every `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index`; -1 is the last."""
    end = config.get("moe_layer_end_index", -1)
    last = config["num_hidden_layers"] - 1 if end in (None, -1) else end
    every = (layer + 1) % (config.get("moe_layer_interval") or 1) == 0
    return every and config.get("moe_layer_start_index", 1) <= layer <= last


ARCHITECTURE: Architecture = Architecture(
    model_type="ernie4_5_moe",
    blocks=("model.layers.{layer}.mlp",),
    projections={"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"},
    fused={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
    router=("gate.weight", BIAS, f"gate.{BIAS}"),
    expert_axis={BIAS: 1, f"gate.{BIAS}": 1},
    shared=("shared_experts.",),
    num_experts_keys=("moe_num_experts",),
    top_k_key="moe_k",
    is_moe_layer=is_moe_layer,
)
