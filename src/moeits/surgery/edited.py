"""The tensors of edited experts: known from headers, computed one expert at a time as they are written."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from moeits.checkpoint.reading import DTYPES, FLOATS, Checkpoint, TensorInfo
from moeits.checkpoint.writing import ByteRange
from moeits.edits import Edit, Group, PlannedEdit
from moeits.edits.in_order import edits_in
from moeits.edits.neurons import OfNeurons
from moeits.edits.weights import Detail, OfWeights
from moeits.errors import NonFiniteWeight, UnscorableWeight
from moeits.experts.held import Held
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout
from moeits.surgery.blended import Blended, Blending, HeldRows
from moeits.surgery.fates import Compute

# Expert -> the tensor that holds something of it, and where in it.
Place = Callable[[int], tuple[str, tuple[int, ...]]]


class Make(Protocol):
    """What an expert gets in a tensor: float32 or float64, of the shape of what it has there.

    `key` is what follows an expert's number, or the name of the tensor that has all experts; `read` gives what any
    expert of the layer has there.
    """

    def __call__(self, expert: int, key: str, read: Callable[[int], np.ndarray]) -> np.ndarray: ...


def edited_tensors(
    checkpoint: Checkpoint, moe: MoELayout, kept: Mapping[int, Sequence[int]], edit: PlannedEdit | None
) -> dict[str, Compute]:
    """Which tensors of the source the edits give another fate: those of kept experts that are made of several, or all
    of them.

    Raises SettingError for edits that nobody knows or that cannot be, UnscorableWeight where experts are quantized.
    """
    if edit is None:
        return {}
    known, computed, rows = edits_in(edit), dict[str, Compute](), HeldRows()
    for i in kept:
        here = [(asked, each) for asked, each in known if isinstance(each, OfWeights) or asked.groups.get(i)]
        if not here:
            continue
        layer = moe.layers[i]
        check_numbers(checkpoint, layer, edit.names)
        steps = [_step(checkpoint, moe, i, each, asked, kept[i], rows) for asked, each in here]
        edited = sorted({expert for step in steps for expert in step.edited})
        made = partial(_made, checkpoint, steps)
        numbers = {expert: number for number, expert in enumerate(kept[i])}
        for expert in edited if layer.experts else ():
            for tensor, name in layer.experts[expert].items():
                info = checkpoint.tensors[name]
                part = partial(made, expert, tensor, partial(_of_its_own, layer, tensor))
                computed[name] = Compute(layer.experts[numbers[expert]][tensor], info.dtype, info.shape, (part,))
        for name in layer.fused.values():
            computed[name] = _fused(checkpoint.tensors[name], kept[i], edited, made)
    return computed


def _fused(info: TensorInfo, kept: Sequence[int], edited: Collection[int], made: Callable[..., bytes]) -> Compute:
    """A tensor of all experts of a layer; who is not edited is moved as bytes."""
    nbytes = info.nbytes // info.shape[0]
    parts = tuple(
        partial(made, expert, info.name, partial(_among_all, info.name))
        if expert in edited
        else ByteRange(shard=info.shard, offset=info.offset + expert * nbytes, length=nbytes)
        for expert in kept
    )
    return Compute(info.name, info.dtype, (len(kept), *info.shape[1:]), parts)


def _of_its_own(layer: MoELayer, tensor: str, expert: int) -> tuple[str, tuple[int, ...]]:
    return layer.experts[expert][tensor], ()


def _among_all(name: str, expert: int) -> tuple[str, tuple[int, ...]]:
    return name, (expert,)


def matrices(
    checkpoint: Checkpoint,
    moe: MoELayout,
    layer: int,
    kept: Sequence[int],
    edits: Sequence[tuple[PlannedEdit, Edit]],
    rows: HeldRows,
) -> Callable[[int], dict[str, np.ndarray]]:
    """Kept expert -> what these edits make of it: projection -> (outputs, inputs), in the dtype that it has on disk."""
    own, held = moe.layers[layer], moe.held(layer)
    here = [(asked, each) for asked, each in edits if isinstance(each, OfWeights) or asked.groups.get(layer)]
    steps = [_step(checkpoint, moe, layer, each, asked, kept, rows) for asked, each in here]

    def of(expert: int) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for key, holds in held.items():
            place = partial(_of_its_own, own, key) if own.experts else partial(_among_all, key)
            found |= {} if holds.bias else holds.of(_numbers(checkpoint, steps, expert, key, place))
        return found

    return of


def _made(checkpoint: Checkpoint, steps: Sequence["_Step"], expert: int, key: str, place: Place) -> bytes:
    return _numbers(checkpoint, steps, expert, key, place).tobytes()


def _numbers(checkpoint: Checkpoint, steps: Sequence["_Step"], expert: int, key: str, place: Place) -> np.ndarray:
    """One tensor of one kept expert, in the dtype that it is stored in, which it has between two edits too."""
    name, _ = place(expert)
    dtype = DTYPES[checkpoint.tensors[name].dtype]
    made: np.ndarray | None = None

    def read(member: int) -> np.ndarray:
        # Whoever comes after another edit reads nobody else.
        stored = checkpoint.read(*place(member)) if made is None else made
        return stored if stored.dtype.itemsize > 4 else stored.astype(np.float32)

    for step in steps:
        if expert not in step.edited:
            continue
        made = step.make(expert, key, read).astype(dtype)
        if not np.isfinite(made).all():
            raise NonFiniteWeight(f"{name} would not be finite as --edit {step.name} makes it. Plan without it.")
    return checkpoint.read(*place(expert)) if made is None else made


# ------------------------------------------------------------------------------------------ how a tensor is made


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One edit of one layer."""

    name: str
    edited: Collection[int]
    make: Make


def _step(
    checkpoint: Checkpoint,
    moe: MoELayout,
    layer: int,
    edit: Edit,
    asked: PlannedEdit,
    kept: Sequence[int],
    rows: HeldRows,
) -> _Step:
    """Raises what `OfWeights.check` raises."""
    groups = asked.groups.get(layer, {})
    make: Make
    if isinstance(edit, OfWeights):
        details = asked.details.get(layer, {})
        for projection, shape in shapes(checkpoint, moe, layer).items():
            for expert in kept:
                edit.check(projection, shape, details.get(expert, {}))
        return _Step(name=edit.name, edited=kept, make=_Changed(edit, details, moe.held(layer)))
    if isinstance(edit, OfNeurons):
        make = Blended(Blending(checkpoint, moe, layer, edit, groups), moe.held(layer), rows)
    else:
        make = _OfGroup(edit, groups)
    return _Step(name=edit.name, edited=groups.keys(), make=make)


def shapes(checkpoint: Checkpoint, moe: MoELayout, layer: int) -> dict[str, tuple[int, int]]:
    """Projection -> (outputs, inputs) of an expert of a layer, by headers alone."""
    own, shapes = moe.layers[layer].experts.get(0, {}), dict[str, Any]()
    for key, held in moe.held(layer).items():
        stored = checkpoint.tensors[own.get(key, key)].shape[-1 if held.bias else -2 :]
        if not held.bias:
            shapes |= {name: matrix.shape for name, matrix in held.of(np.broadcast_to(0, stored)).items()}
    return shapes


@dataclass(frozen=True)
class _OfGroup:
    """A tensor of the same tensor of several experts."""

    edit: Edit
    groups: Mapping[int, Group]

    def __call__(self, expert: int, key: str, read: Callable[[int], np.ndarray]) -> np.ndarray:  # noqa: ARG002
        return self.edit.make(expert, self.groups[expert], read)


@dataclass(frozen=True)
class _Changed:
    """A tensor whose matrices are changed one by one; biases stay as they are."""

    edit: OfWeights
    details: Mapping[int, Detail]
    held: Mapping[str, Held]

    def __call__(self, expert: int, key: str, read: Callable[[int], np.ndarray]) -> np.ndarray:
        own, held = read(expert).copy(), self.held[key]
        if not held.bias:
            for projection, weight in held.of(own).items():
                weight[:] = self.edit.changed(
                    projection, np.ascontiguousarray(weight, np.float32), self.details.get(expert, {})
                )
        return own


def check_numbers(checkpoint: Checkpoint, layer: MoELayer, edit: str) -> None:
    """The experts of a layer are numbers, not packed. Raises UnscorableWeight."""
    names = layer.experts[0].values() if layer.experts else layer.fused.values()
    packed = next((checkpoint.tensors[name] for name in names if checkpoint.tensors[name].dtype not in FLOATS), None)
    if packed is not None:
        raise UnscorableWeight(
            f"{packed.name} is quantized ({packed.dtype}), and --edit {edit} computes with numbers. Prune a copy in "
            "bf16, or plan without --edit."
        )
