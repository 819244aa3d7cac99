"""The experts of the smallest weights go first."""

from moeits.choosing.criteria.of_experts import ByExpertSignal
from moeits.signals.weight_norm import WeightNorm

CRITERION = ByExpertSignal(WeightNorm, chosen="of the smallest weights")
