"""Qwen3-Next (80B-A3B): as Qwen2-MoE, in layers of two kinds of attention."""

from moeits.experts.architectures import Architecture, qwen2_moe

ARCHITECTURE: Architecture = qwen2_moe.ARCHITECTURE.variant("qwen3_next")
