"""Algorithm 3 on how alike the rows of the router are, in place of redundancy."""

from moeits.choosing.criteria.by_pairs import ByPairSignal
from moeits.signals.router_cosine import RouterCosine

CRITERION = ByPairSignal(signal=RouterCosine, chosen="alike to the router")
