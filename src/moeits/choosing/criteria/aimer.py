"""AIMER: the experts of the flattest weights go first."""

from moeits.choosing.criteria.of_experts import ByExpertSignal
from moeits.signals.aimer import Aimer

CRITERION = ByExpertSignal(Aimer, chosen="of the flattest weights")
