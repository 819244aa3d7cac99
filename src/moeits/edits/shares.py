"""What each expert of a group counts in what is made of them."""

from collections.abc import Sequence

import numpy as np

from moeits.edits import Group
from moeits.evidence import Evidence


def shares_of(group: Sequence[int], evidence: Evidence, layer: int, signals: Sequence[str]) -> Group:
    """Shares by the first of these signals that the evidence knows; equal ones where it knows none, or all are 0."""
    known = next((evidence.of_experts(name)[layer] for name in signals if layer in evidence.known(name)), None)
    chosen = np.ones(len(group)) if known is None else np.asarray(known, np.float64)[list(group)]
    shares = chosen / chosen.sum() if chosen.sum() > 0 else np.full(len(group), 1 / len(group))
    return tuple((expert, float(share)) for expert, share in zip(group, shares, strict=True))
