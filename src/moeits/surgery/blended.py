"""Tensors of experts whose neurons are sums of neurons of others; who goes into several is read once, not for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.edits import Group
from moeits.edits.neurons import Blend, OfNeurons
from moeits.errors import NonFiniteWeight
from moeits.experts.held import Held, by_neuron
from moeits.experts.layout import MoELayout

MOST_HELD_BYTES = 2**30
"""Of neurons that several experts take in; what is beyond is read again for each of them."""

_Rows = Mapping[str, np.ndarray]


@dataclass
class HeldRows:
    """Neurons that several experts of the layer that is being written take in, by tensor and by whose they are."""

    layer: int = -1
    rows: dict[tuple[str, int], _Rows] = field(default_factory=dict)
    nbytes: int = 0

    def of(self, layer: int, key: str, member: int, make: Callable[[], _Rows]) -> _Rows:
        """Those of one tensor of one expert, made if they are not held."""
        if layer != self.layer:
            self.layer, self.rows, self.nbytes = layer, {}, 0
        if (found := self.rows.get((key, member))) is not None:
            return found
        made = make()
        nbytes = sum(rows.nbytes for rows in made.values())
        if self.nbytes + nbytes <= MOST_HELD_BYTES:
            self.rows[key, member] = made
            self.nbytes += nbytes
        return made


@dataclass(frozen=True)
class Blending:
    """What the neurons of a layer are made of, settled when the first of its tensors is written."""

    checkpoint: Checkpoint
    moe: MoELayout
    layer: int
    edit: OfNeurons
    groups: Mapping[int, Group]

    @cached_property
    def blends(self) -> Mapping[int, Blend]:
        return self.edit.blends(self.groups, self._read)

    @cached_property
    def shared(self) -> Mapping[int, np.ndarray]:
        """Expert that several take in -> those of its neurons that anybody does, ascending."""
        taken: dict[int, list[np.ndarray]] = {}
        for expert, blend in self.blends.items():
            for member, terms in blend.items():
                if member != expert:
                    taken.setdefault(member, []).append(terms.neurons)
        return {member: np.unique(np.concatenate(of)) for member, of in taken.items() if len(of) > 1}

    def _read(self, expert: int) -> dict[str, np.ndarray]:
        found = {}
        for projection in self.moe.architecture.projection_names:
            matrix = self.moe.read(self.checkpoint, self.layer, expert, projection).astype(np.float32)
            if not np.isfinite(matrix).all():
                name = self.moe.weight_name(self.layer, expert, projection)
                raise NonFiniteWeight(f"{name} is not finite, so that no edit can tell its neurons. Plan without it.")
            found[projection] = by_neuron(projection, matrix)
        return found


@dataclass(frozen=True)
class Blended:
    """A tensor whose neurons are sums of neurons; what belongs to none stays as it is."""

    of_layer: Blending
    held: Mapping[str, Held]
    rows: HeldRows

    def __call__(self, expert: int, key: str, read: Callable[[int], np.ndarray]) -> np.ndarray:
        own, held = read(expert).astype(np.float64), self.held[key]
        blend = self.of_layer.blends.get(expert)
        if blend is None:
            return own
        made = held.neurons(own)
        totals = {projection: np.zeros_like(rows) for projection, rows in made.items()}
        for member, terms in blend.items():
            needed = self.of_layer.shared.get(member)
            if needed is None:
                of_member: _Rows = held.neurons(read(member))
            else:
                cut = partial(self._cut, key, member, read)
                of_member = self.rows.of(self.of_layer.layer, key, member, cut)
                terms = replace(terms, neurons=np.searchsorted(needed, terms.neurons))
            for projection, total in totals.items():
                terms.add(of_member[projection], total)
        for projection, total in totals.items():
            made[projection][:] = total
        return own

    def _cut(self, key: str, member: int, read: Callable[[int], np.ndarray]) -> _Rows:
        """The neurons of a removed expert that anybody takes in, in one of its tensors."""
        found = self.held[key].neurons(read(member))
        return {projection: rows[self.of_layer.shared[member]] for projection, rows in found.items()}
