"""GLM-4.5 and GLM-4.6 (Air too): the first layers are dense; a selection bias, groups as in DeepSeek-V3."""

from moeits.experts.architectures import Architecture, deepseek_v3

ARCHITECTURE: Architecture = deepseek_v3.ARCHITECTURE.variant("glm4_moe")
