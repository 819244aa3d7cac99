"""What becomes of every tensor: copied, taken in part, renamed, dropped or computed, decided on headers alone.

Every tensor has exactly one fate, and all fates are known before a byte is written.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from moeits.checkpoint.reading import DTYPES, Checkpoint, TensorInfo
from moeits.checkpoint.writing import ByteRange, NewTensor, Part
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout
from moeits.surgery.padding import filled, filler, name_of, own_tensors


@dataclass(frozen=True)
class Copy:
    """Not of one expert: byte for byte, under its own name."""


@dataclass(frozen=True)
class Take:
    """Of all experts: keep the rows of the kept ones."""

    rows: tuple[int | None, ...]
    """None is the row of padding."""
    axis: int = 0
    """The axis of the experts."""
    filler: float = 0.0
    """What stands in a row of padding."""


@dataclass(frozen=True)
class Rename:
    """A kept expert's own tensor: byte for byte, under its new number."""

    name: str


@dataclass(frozen=True)
class Drop:
    """A removed expert's own tensor."""


@dataclass(frozen=True)
class Compute:
    """New numbers: each part is made when it is written, so that computed tensors are never in memory together."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[ByteRange | Callable[[], bytes], ...]
    """Row-major bytes, one part after another; an expert each, say. Some may be moved among those that are made."""

    @property
    def tensor(self) -> NewTensor:
        """The header entry, known before any number is."""
        nbytes = prod(self.shape) * DTYPES[self.dtype].itemsize
        return NewTensor(name=self.name, dtype=self.dtype, shape=self.shape, nbytes=nbytes, parts=self.parts)


Fate = Copy | Take | Rename | Drop | Compute


def fates(layer: MoELayer, kept: Sequence[int | None]) -> dict[str, Fate]:
    """The fate of every tensor of one MoE block, by name; `kept` are the experts in their new order, None is padding.

    What is outside MoE blocks is copied.
    """
    result: dict[str, Fate] = dict.fromkeys(layer.shared, Copy())
    for name, axis in layer.expert_axes.items():
        others = range(layer.num_experts, layer.num_experts + layer.extra.get(name, 0))
        result[name] = Take((*kept, *others), axis, filler(layer, name))
    new_number = {expert: number for number, expert in enumerate(kept)}
    for expert, tensors in layer.experts.items():
        for tensor, name in tensors.items():
            kept_as = new_number.get(expert)
            result[name] = Drop() if kept_as is None else Rename(name_of(layer, kept_as, tensor))
    decided = len(layer.shared) + len(layer.expert_axes) + sum(map(len, layer.experts.values()))
    assert decided == len(result), "the layout should have refused a tensor that is two things at once"
    return result


def new_tensors(
    checkpoint: Checkpoint,
    moe: MoELayout,
    kept: Mapping[int, Sequence[int | None]],
    computed: Mapping[str, Compute] = MappingProxyType({}),
    dropped: Collection[str] = (),
) -> list[NewTensor]:
    """What is written, in the order of the source's shards: every tensor's fate carried out on headers alone.

    `computed` gives some tensors of the source another fate than the plan does; one that the plan drops cannot have it.
    `dropped` are tensors outside MoE blocks that are left out.
    """
    fate_of = {name: fate for i, layer in moe.layers.items() for name, fate in fates(layer, kept[i]).items()}
    fate_of |= dict.fromkeys(dropped, Drop())
    for name, new in computed.items():
        assert name in checkpoint.tensors, f"{name} is computed, but the source has no such tensor"
        assert not isinstance(fate_of.get(name), Drop), f"{name} is computed and dropped"
        fate_of[name] = new
    made = []
    for info in checkpoint.tensors.values():
        fate = fate_of.get(info.name, Copy())
        match fate:
            case Copy():
                made.append(_moved(info, info.name))
            case Rename(name):
                made.append(_moved(info, name))
            case Take(rows, axis, value):
                made.append(_rows(info, rows, axis, value))
            case Compute():
                made.append(fate.tensor)
            case Drop():
                pass
    made += [tensor for i, layer in moe.layers.items() for tensor in own_tensors(checkpoint, layer, kept[i])]
    names = [tensor.name for tensor in made]
    assert len(names) == len(set(names)), "two tensors would get one name"
    return made


def _moved(info: TensorInfo, name: str) -> NewTensor:
    whole = ByteRange(shard=info.shard, offset=info.offset, length=info.nbytes)
    return NewTensor(name=name, dtype=info.dtype, shape=info.shape, nbytes=info.nbytes, parts=(whole,))


def _rows(info: TensorInfo, rows: Sequence[int | None], axis: int, value: float) -> NewTensor:
    """Rows of a row-major tensor are contiguous bytes; neighbouring rows are moved together."""
    before, count, after = prod(info.shape[:axis]), info.shape[axis], info.shape[axis + 1 :]
    row_bytes = info.nbytes // (before * count)
    parts: list[Part] = []
    for outer, row in ((outer, row) for outer in range(before) for row in rows):
        if row is None:
            parts.append(filled(value, info.dtype, prod(after)))
            continue
        start = info.offset + (outer * count + row) * row_bytes
        last = parts[-1] if parts else None
        if isinstance(last, ByteRange) and last.offset + last.length == start:
            parts[-1] = replace(last, length=last.length + row_bytes)
        else:
            parts.append(ByteRange(shard=info.shard, offset=start, length=row_bytes))
    shape, nbytes = (*info.shape[:axis], len(rows), *after), row_bytes * before * len(rows)
    return NewTensor(name=info.name, dtype=info.dtype, shape=shape, nbytes=nbytes, parts=tuple(parts))
