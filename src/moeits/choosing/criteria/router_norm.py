"""The experts with the smallest rows of the router go first."""

from moeits.choosing.criteria.of_experts import ByExpertSignal
from moeits.signals.router_norm import RouterNorm

CRITERION = ByExpertSignal(RouterNorm, chosen="of the smallest router rows")
