"""The tensors of edited experts: known from headers, computed one expert at a time as they are written."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from moeits.checkpoint.reading import DTYPES, FLOATS, Checkpoint, TensorInfo
from moeits.checkpoint.writing import ByteRange
from moeits.edits import Edit, Group, PlannedEdit, edit_named
from moeits.errors import NonFiniteWeight, UnscorableWeight
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout
from moeits.surgery.fates import Compute

# Expert -> the tensor that holds something of it, and where in it.
Place = Callable[[int], tuple[str, tuple[int, ...]]]


def edited_tensors(
    checkpoint: Checkpoint, moe: MoELayout, kept: Mapping[int, Sequence[int]], edit: PlannedEdit | None
) -> dict[str, Compute]:
    """Which tensors of the source an edit gives another fate: those of kept experts that are made of several.

    Raises SettingError for an edit that nobody knows, UnscorableWeight where experts are quantized.
    """
    if edit is None:
        return {}
    computed: dict[str, Compute] = {}
    for i, groups in edit.groups.items():
        layer, make = moe.layers[i], partial(_made, checkpoint, edit_named(edit.name))
        check_numbers(checkpoint, layer, edit.name)
        numbers = {expert: number for number, expert in enumerate(kept[i])}
        for expert, group in groups.items() if layer.experts else ():
            for tensor, name in layer.experts[expert].items():
                info = checkpoint.tensors[name]
                part = partial(make, expert, group, partial(_of_its_own, layer, tensor))
                computed[name] = Compute(layer.experts[numbers[expert]][tensor], info.dtype, info.shape, (part,))
        for name in layer.fused.values():
            computed[name] = _fused(checkpoint.tensors[name], kept[i], groups, make)
    return computed


def _fused(info: TensorInfo, kept: Sequence[int], groups: Mapping[int, Group], make: Callable[..., bytes]) -> Compute:
    """A tensor of all experts of a layer; who is not edited is moved as bytes."""
    nbytes = info.nbytes // info.shape[0]
    parts = tuple(
        partial(make, expert, groups[expert], partial(_among_all, info.name))
        if expert in groups
        else ByteRange(shard=info.shard, offset=info.offset + expert * nbytes, length=nbytes)
        for expert in kept
    )
    return Compute(info.name, info.dtype, (len(kept), *info.shape[1:]), parts)


def _of_its_own(layer: MoELayer, tensor: str, expert: int) -> tuple[str, tuple[int, ...]]:
    return layer.experts[expert][tensor], ()


def _among_all(name: str, expert: int) -> tuple[str, tuple[int, ...]]:
    return name, (expert,)


def _made(checkpoint: Checkpoint, edit: Edit, expert: int, group: Group, place: Place) -> bytes:
    """One tensor of one kept expert, in the dtype that it is stored in."""

    def read(member: int) -> np.ndarray:
        stored = checkpoint.read(*place(member))
        return stored if stored.dtype.itemsize > 4 else stored.astype(np.float32)

    name, _ = place(expert)
    made = edit.make(expert, group, read).astype(DTYPES[checkpoint.tensors[name].dtype])
    if not np.isfinite(made).all():
        raise NonFiniteWeight(f"{name} would not be finite as --edit {edit.name} makes it. Plan without it.")
    return made.tobytes()


def check_numbers(checkpoint: Checkpoint, layer: MoELayer, edit: str) -> None:
    """The experts of a layer are numbers, not packed. Raises UnscorableWeight."""
    names = layer.experts[0].values() if layer.experts else layer.fused.values()
    packed = next((checkpoint.tensors[name] for name in names if checkpoint.tensors[name].dtype not in FLOATS), None)
    if packed is not None:
        raise UnscorableWeight(
            f"{packed.name} is quantized ({packed.dtype}), and --edit {edit} computes with numbers. Prune a copy in "
            "bf16, or plan without --edit."
        )
