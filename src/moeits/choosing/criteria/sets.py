"""Sets of experts that calibrating found, one for each count, or for some counts."""

import numpy as np

from moeits.errors import EvidenceError
from moeits.evidence import Evidence

Sets = tuple[tuple[int, ...] | None, ...]
"""Who stays after 0, 1, ... steps, ascending; None for a count of which there is no set."""


def sets_of(evidence: Evidence, name: str, layer: int) -> Sets:
    """The sets of a signal (E, E), whose row n has the n + 1 experts that stay. Raises EvidenceError if it has others.

    All experts are a set whether it says so or not.
    """
    members = evidence.of_pairs(name)[layer] != 0
    sizes, everyone = members.sum(axis=1), tuple(range(len(members)))
    if ((sizes != 0) & (sizes != np.arange(1, len(members) + 1))).any():
        raise EvidenceError(
            f"{name} of layer {layer} has sets of other sizes than its rows have in the evidence. Calibrate the model "
            "again."
        )
    sets = (tuple(map(int, np.flatnonzero(row))) or None for row in members[-2::-1])
    return (everyone, *sets) if len(members) > 1 else (everyone,)
