"""EAN, the sum over its tokens of the norm of an expert's output."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class EanSum(LeastOfSignal):
    """EAN, the sum over its tokens of the norm of an expert's output."""

    name: ClassVar[str] = "ean-sum"
    chosen: ClassVar[str] = "of small total outputs"
    level: ClassVar[str] = "ean-sum"


CRITERION = EanSum()
