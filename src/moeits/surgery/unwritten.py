"""What `prune` would write, read as a checkpoint that is nowhere on disk: ranges of the bytes of its source."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from moeits.checkpoint.fingerprints import Coverage
from moeits.checkpoint.reading import DTYPES, Checkpoint, TensorInfo, contiguous
from moeits.checkpoint.sources import read_range
from moeits.checkpoint.writing import ByteRange, NewTensor
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import CheckpointError, PlanError
from moeits.experts.layout import MoELayout
from moeits.progress import Progress, silent
from moeits.surgery.carried_out import carried_out, check_plan
from moeits.surgery.settings import Writing


class Unwritten(Checkpoint):
    """A pruned checkpoint before it is written; `folder` is that of its source, whose side files are its own.

    Only tensors that are moved can be read. Of a shard and an offset each has the first of its bytes.
    """

    def __init__(self, source: Checkpoint, config: Mapping[str, Any], tensors: Sequence[NewTensor]) -> None:
        self.folder, self.source, self.config = source.folder, source.source, config
        self._ranges = {tensor.name: _ranges_of(tensor) for tensor in tensors}
        self._of = source
        self.stamps = source.stamps
        self.tensors: Mapping[str, TensorInfo] = {
            tensor.name: TensorInfo(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                shard=self._ranges[tensor.name][0].shard,
                offset=self._ranges[tensor.name][0].offset,
                nbytes=tensor.nbytes,
            )
            for tensor in tensors
        }

    @cached_property
    def fingerprint(self) -> str:
        """Another one than the written checkpoint has: of the source, and of where each tensor's bytes are."""
        digest = hashlib.sha256(self._of.fingerprint.encode())
        for name, ranges in sorted(self._ranges.items()):
            digest.update(f"{name} {[(r.shard.name, r.offset, r.length) for r in ranges]}".encode())
        return digest.hexdigest()

    def coverage(self, *, full: bool = False, progress: Progress = silent) -> Coverage:
        """Of its source, all of whose bytes it may have: its own are in pieces, and written nowhere."""
        return self._of.coverage(full=full, progress=progress)

    def check_unchanged(self) -> None:
        """Its source's shards are still those that were opened."""
        self._of.check_unchanged()

    def read(self, name: str, where: tuple[int | slice, ...] = ()) -> np.ndarray:
        """As a checkpoint on disk does: only the bytes of the part that is asked for are read."""
        info = self.tensors[name]
        dtype = DTYPES[info.dtype]
        first, shape = contiguous(info.shape, where)
        begin, count = first * dtype.itemsize, prod(shape) * dtype.itemsize
        raw = np.concatenate([*_pieces(self._ranges[name], begin, begin + count), np.empty(0, np.uint8)])
        if raw.size != count:
            raise CheckpointError(f"{info.shard.name} ends in the middle of {name}. Download this file again.")
        return raw.view(dtype).reshape(shape)


def unwritten(checkpoint: Checkpoint, plan: PruningPlan) -> Unwritten:
    """The checkpoint that `prune` would write, to be read without writing it. Raises what `prune` raises."""
    moe = MoELayout.of(checkpoint)
    check_plan(plan, checkpoint, moe)
    if plan.edit is not None:
        what = "makes experts of several" if plan.edit.groups else "changes the weights of experts"
        raise PlanError(
            f"The plan {what} (edit {plan.edit.names}), to be read only once they are written. "
            "Prune by it first, or plan without --edit."
        )
    made = carried_out(checkpoint, moe, plan, Writing(), plan.coverage)
    return Unwritten(checkpoint, made.config, made.tensors)


def _ranges_of(tensor: NewTensor) -> tuple[ByteRange, ...]:
    ranges = tuple(part for part in tensor.parts if isinstance(part, ByteRange))
    assert len(ranges) == len(tensor.parts), f"{tensor.name} is computed, not moved"
    return ranges


def _pieces(ranges: Sequence[ByteRange], begin: int, end: int) -> Iterator[np.ndarray]:
    """The bytes [begin, end) of some ranges put one after the other."""
    at = 0
    for each in ranges:
        low, high = max(begin, at), min(end, at + each.length)
        if low < high:
            yield read_range(each.shard, each.offset + low - at, high - low)
        at += each.length
