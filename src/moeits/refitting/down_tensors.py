"""Which tensor holds a down projection, of a routed expert or of the shared one, and how large one is."""

from moeits.checkpoint.reading import Checkpoint
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout
from moeits.typed_json import NotOfItsType

SHARED = -1
"""The shared expert's number among the experts of a fit."""


def shared_down_name(moe: MoELayer) -> str | None:
    """The tensor of the shared expert's down projection; None where there is not exactly one."""
    names = [name for name in moe.shared if name.endswith(".down_proj.weight")]
    return names[0] if len(names) == 1 else None


def is_alone(layout: MoELayout, layer: int, expert: int) -> bool:
    """Whether a down projection is a tensor of its own, (H, I), and not stacked with others."""
    return expert == SHARED or bool(layout.layers[layer].experts)


def down_name(layout: MoELayout, layer: int, expert: int) -> str:
    """The tensor that holds a down projection, alone or with others. Raises NotOfItsType if there is none."""
    moe, architecture = layout.layers[layer], layout.architecture
    if expert == SHARED:
        name = shared_down_name(moe)
        if name is None:
            raise NotOfItsType("the layer has no shared expert")
        return name
    if moe.experts:
        return moe.experts[expert][architecture.projections["down"]]
    return moe.fused[next(name for name, stacked in architecture.fused.items() if "down" in stacked)]


def down_shape(checkpoint: Checkpoint, layout: MoELayout, layer: int, expert: int) -> tuple[int, int]:
    """(H, I) of a down projection. Raises NotOfItsType if there is none."""
    rows, columns = checkpoint.tensors[down_name(layout, layer, expert)].shape[-2:]
    as_it_is = is_alone(layout, layer, expert) or layout.architecture.stacking.endswith("rows")
    return (rows, columns) if as_it_is else (columns, rows)
