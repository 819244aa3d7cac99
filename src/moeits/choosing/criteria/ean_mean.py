"""EAN, the mean over its tokens of the norm of an expert's output (the activation norm of MAN)."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class EanMean(LeastOfSignal):
    """EAN, the mean over its tokens of the norm of an expert's output (the activation norm of MAN)."""

    name: ClassVar[str] = "ean-mean"
    chosen: ClassVar[str] = "of small outputs"
    level: ClassVar[str] = "ean-mean"


CRITERION = EanMean()
