"""Which tensor is the shared expert's down projection, and its number in a fit."""

from moeits.experts.layer import MoELayer

SHARED = -1
"""The shared expert's number among the experts of a fit."""


def shared_down_name(moe: MoELayer) -> str | None:
    """The tensor of the shared expert's down projection; None where there is not exactly one."""
    names = [name for name in moe.shared if name.endswith(".down_proj.weight")]
    return names[0] if len(names) == 1 else None
