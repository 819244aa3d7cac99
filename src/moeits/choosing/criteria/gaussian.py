"""Algorithm 3 on the mutual information that correlated weights would have if they were Gaussian."""

from moeits.choosing.criteria.by_pairs import ByPairSignal
from moeits.signals.gaussian import Gaussian

CRITERION = ByPairSignal(signal=Gaussian, chosen="redundant by correlation")
