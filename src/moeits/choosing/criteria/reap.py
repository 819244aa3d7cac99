"""REAP (arXiv 2510.13999): the mean over its tokens of gate times the norm of the output."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class Reap(LeastOfSignal):
    """REAP (arXiv 2510.13999): the mean over its tokens of gate times the norm of the output."""

    name: ClassVar[str] = "reap"
    chosen: ClassVar[str] = "of little effect"
    level: ClassVar[str] = "reap"


CRITERION = Reap()
