"""MoE-I2, the importance of its first stage: what a layer's output changes by if one expert alone is gone."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class MoEI2(LeastOfSignal):
    """MoE-I2's importance (arXiv 2411.01016), smallest first, all judged with the others there.

    MoE-I2 goes on from there with a genetic search for sets: `moe-i2-genetic`.
    """

    name: ClassVar[str] = "moe-i2"
    signal: ClassVar[str] = "drop-error"
    chosen: ClassVar[str] = "unimportant"
    level: ClassVar[str] = "drop-error"
    allocation: ClassVar[str] = "moe-i2"


CRITERION = MoEI2()
