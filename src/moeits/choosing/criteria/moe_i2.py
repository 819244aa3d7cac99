"""MoE-I2, the importance of its first stage: what a layer's output changes by if one expert alone is gone."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class MoEI2(LeastOfSignal):
    """MoE-I2's importance (arXiv 2411.01016), smallest first, all judged with the others there.

    Not as published: MoE-I2 searches for a set by a genetic algorithm, and among combinations over three layers.
    """

    name: ClassVar[str] = "moe-i2"
    signal: ClassVar[str] = "drop-error"
    chosen: ClassVar[str] = "unimportant"
    level: ClassVar[str] = "drop-error"
    allocation: ClassVar[str] = "moe-i2"


CRITERION = MoEI2()
