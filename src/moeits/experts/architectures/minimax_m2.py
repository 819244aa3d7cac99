"""MiniMax-M2: every layer has experts, named as Mixtral's; a selection bias."""

from moeits.experts.architectures import Architecture, minimax

ARCHITECTURE: Architecture = minimax.ARCHITECTURE.variant(
    "minimax_m2", router=("gate.weight", "e_score_correction_bias")
)
