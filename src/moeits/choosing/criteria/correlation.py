"""Algorithm 3 on the correlation of weights, entry by entry, in place of redundancy."""

from moeits.choosing.criteria.by_pairs import ByPairSignal
from moeits.signals.correlation import Correlation

CRITERION = ByPairSignal(signal=Correlation, chosen="alike entry by entry")
