"""Algorithm 3 on how alike experts are when their neurons are matched, in place of redundancy."""

from moeits.choosing.criteria.by_pairs import ByPairSignal
from moeits.signals.aligned import Aligned

CRITERION = ByPairSignal(signal=Aligned, chosen="alike neuron by neuron")
