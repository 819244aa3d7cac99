"""dots.llm1: the first layers are dense; a selection bias, groups as in DeepSeek-V3."""

from moeits.experts.architectures import Architecture, deepseek_v3

ARCHITECTURE: Architecture = deepseek_v3.ARCHITECTURE.variant("dots1")
