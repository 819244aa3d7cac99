"""One weight of one expert as it lies in a checkpoint: in which tensors, where in them, and by which codec."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.errors import UnscorableWeight
from moeits.experts.codecs import Codec, Part, codec_of

Stacking = Literal["rows", "alternating rows", "columns", "alternating columns"]


@dataclass(frozen=True, kw_only=True)
class WeightSize:
    """What one projection of one expert weighs, and what it takes to read it."""

    entries: int
    itemsize: int
    read_bytes: int
    """Bytes held while it is read: where projections stand side by side, or are packed, more than the weight."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a projection is in a fused weight."""

    expert: int
    at: int
    """Which of the projections stacked there."""
    of: int
    stacking: Stacking

    def own_rows(self, rows: int) -> slice:
        """Its rows, of all rows of a matrix stacked in rows."""
        each = rows // self.of
        return slice(self.at * each, (self.at + 1) * each)

    def cut(self, outputs_first: np.ndarray) -> np.ndarray:
        """Its matrix, of the whole one turned to (outputs, inputs)."""
        if self.stacking.startswith("alternating"):
            return outputs_first[self.at :: self.of]
        return outputs_first[self.own_rows(len(outputs_first))]


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """One projection of one expert."""

    codec: Codec
    tensors: Mapping[str, TensorInfo]
    """What the codec reads, by the names of `Codec`."""
    place: Place | None
    """None where every expert has tensors of its own."""

    @classmethod
    def of(cls, tensors: Mapping[str, TensorInfo], place: Place | None) -> "StoredWeight | None":
        """The weight that is kept in these parts; None where no codec holds it."""
        codec = codec_of(_parts(tensors, place))
        if codec is None:
            return None
        return cls(codec=codec, tensors={name: tensors[name] for name in codec.reads if name in tensors}, place=place)

    def read(self, checkpoint: Checkpoint) -> np.ndarray:
        """Its numbers, (outputs, inputs): in the stored dtype, or in that of the model where they are packed."""
        place = self.place
        if place and self._rows_apart:
            rows = place.own_rows(self.tensors["weight"].shape[1])
            return checkpoint.read(self.tensors["weight"].name, (place.expert, rows))
        where = () if place is None else (place.expert,)
        parts = {name: checkpoint.read(info.name, where) for name, info in self.tensors.items()}
        whole = self.codec.decode(parts, checkpoint.config)
        if place is None:
            return whole
        return np.ascontiguousarray(place.cut(whole.T if self._turned else whole))

    def size(self, config: Mapping[str, Any]) -> WeightSize:
        """What it weighs. Raises UnscorableWeight if its parts do not fit each other."""
        try:
            whole = self.codec.size(_parts(self.tensors, self.place), config)
        except UnscorableWeight as error:
            raise UnscorableWeight(f"{self._names}: {error}.") from None
        self._check_matrix(whole.shape)
        entries = whole.entries // (self.place.of if self.place else 1)
        if self.place and self._rows_apart:
            return WeightSize(entries=entries, itemsize=whole.itemsize, read_bytes=entries * whole.itemsize)
        cut = entries * whole.itemsize if self.place and self.place.stacking != "rows" else 0
        return WeightSize(entries=entries, itemsize=whole.itemsize, read_bytes=whole.held_bytes + cut)

    def _check_matrix(self, shape: tuple[int, ...]) -> None:
        of = self.place.of if self.place else 1
        if len(shape) != 2 or not all(shape) or shape[1 if self._turned else 0] % of:
            raise UnscorableWeight(
                f"{self._names}: shape {list(shape)} is not that of a matrix"
                + (f" of {of} equal parts" if of > 1 else "")
                + ". Download the checkpoint again."
            )

    @property
    def _names(self) -> str:
        return ", ".join(info.name for info in self.tensors.values())

    @property
    def _turned(self) -> bool:
        """Whether what is decoded is (inputs, outputs)."""
        return self.place is not None and self.place.stacking.endswith("columns") and not self.codec.outputs_first

    @property
    def _rows_apart(self) -> bool:
        return self.place is not None and self.place.stacking == "rows" and self.codec.rows_apart


def parts_of(weight: str, names: Mapping[str, str]) -> dict[str, str]:
    """The tensors that keep a weight, among others: `weight` itself, `scale_inv` for `weight_scale_inv`, `qweight`."""
    parts = {}
    for name, tensor in names.items():
        if name == weight:
            parts["weight"] = tensor
        elif name.startswith((weight + "_", weight + ".")):
            parts[name[len(weight) + 1 :]] = tensor
        elif weight.endswith(".weight") and name.startswith(stem := weight.removesuffix("weight")):
            parts[name.removeprefix(stem)] = tensor
    return parts


def _parts(tensors: Mapping[str, TensorInfo], place: Place | None) -> dict[str, Part]:
    """What one expert has of each tensor."""
    if place is None:
        return {name: Part(dtype=info.dtype, shape=info.shape, nbytes=info.nbytes) for name, info in tensors.items()}
    return {
        name: Part(dtype=info.dtype, shape=info.shape[1:], nbytes=info.nbytes // info.shape[0])
        for name, info in tensors.items()
    }
