"""The parts of an expert that a signal asks for, read off a checkpoint by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import NonFiniteWeight, SettingError, UnscorableWeight
from moeits.experts.layout import MoELayout
from moeits.experts.stored import WeightSize
from moeits.signals import ROUTER

Value = TypeVar("Value")


def with_parts(
    work: Callable[[Mapping[str, np.ndarray]], Value],
    checkpoint: Checkpoint,
    layout: MoELayout,
    layer: int,
    expert: int,
    parts: Sequence[str],
) -> Value:
    """What some work makes of the parts of one expert; what is wrong with them is said with the tensor's name."""
    try:
        return work({part: _read(checkpoint, layout, layer, expert, part) for part in parts})
    except (NonFiniteWeight, UnscorableWeight, SettingError) as error:
        names = ", ".join(_name(layout, layer, expert, part) for part in parts)
        raise type(error)(f"{names}: {error}.") from None


def size_of_parts(checkpoint: Checkpoint, layout: MoELayout, layer: int, parts: Sequence[str]) -> WeightSize:
    """What these parts of one expert weigh together, and what it takes to read them."""
    sizes = [_size(checkpoint, layout, layer, part) for part in parts]
    return WeightSize(
        entries=sum(size.entries for size in sizes),
        itemsize=max(size.itemsize for size in sizes),
        read_bytes=sum(size.read_bytes for size in sizes),
    )


def _router(layout: MoELayout, layer: int) -> tuple[str, int]:
    """The router's weight, and the axis of the experts in it; what else belongs to a router comes after it."""
    return next(iter(layout.layers[layer].router.items()))


def _read(checkpoint: Checkpoint, layout: MoELayout, layer: int, expert: int, part: str) -> np.ndarray:
    if part != ROUTER:
        return layout.read(checkpoint, layer, expert, part)
    name, axis = _router(layout, layer)
    return checkpoint.read(name, (expert,)) if axis == 0 else checkpoint.read(name).take(expert, axis)


def _size(checkpoint: Checkpoint, layout: MoELayout, layer: int, part: str) -> WeightSize:
    if part != ROUTER:
        return layout.weight_size(checkpoint, layer, part)
    name, axis = _router(layout, layer)
    info = checkpoint.tensors[name]
    count = info.shape[axis]
    nbytes = info.nbytes // count
    return WeightSize(
        entries=info.parameters // count,
        itemsize=info.nbytes // info.parameters,
        read_bytes=nbytes if axis == 0 else nbytes + info.nbytes,
    )


def _name(layout: MoELayout, layer: int, expert: int, part: str) -> str:
    if part != ROUTER:
        return layout.weight_name(layer, expert, part)
    return f"{_router(layout, layer)[0]}[{expert}]"
