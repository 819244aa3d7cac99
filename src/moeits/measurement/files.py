"""What the files of a checkpoint say without running it: parameters, bytes, zeros, and what a plan removed."""

from dataclasses import dataclass
from math import prod

import numpy as np

from moeits.checkpoint.reading import DTYPES, Checkpoint, TensorInfo
from moeits.choosing.pruning_plan import PruningPlan
from moeits.experts import counting
from moeits.experts.layout import MoELayout
from moeits.experts.quantized import quantized_as
from moeits.progress import Progress, silent

_CHUNK_ENTRIES = 2**26


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters of a model."""

    total: int
    active_per_token: int
    """All but the routed experts that a token is not sent to; embeddings count whole."""
    routed: int
    """Of all routed experts, router rows not counted."""
    shared_experts: int
    """Of shared experts and their gates."""
    router: int


def parameters_of(checkpoint: Checkpoint, layout: MoELayout) -> Parameters:
    """Counted from the headers of the tensors, of quantized ones what they stand for."""
    layers, counted = layout.layers.values(), counting.parameters_of(checkpoint)
    total = sum(counted.values())
    routed = sum(moe.num_experts * moe.sizes.parameters for moe in layers)
    picked = sum(min(moe.top_k, moe.num_experts) * moe.sizes.parameters for moe in layers)
    return Parameters(
        total=total,
        active_per_token=total - routed + picked,
        routed=routed,
        shared_experts=sum(counted[name] for moe in layers for name in moe.shared),
        router=sum(counted[name] for moe in layers for name in moe.router),
    )


def file_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the folder on disk: shards, tokenizer, card and all."""
    return sum(path.stat().st_size for path in checkpoint.folder.rglob("*") if path.is_file())


def reduction_of(checkpoint: Checkpoint) -> float | None:
    """P(down) of the plan that made it, the share of routed-expert parameters removed; None without a plan."""
    path = checkpoint.folder / "plan.json"
    if not path.exists():
        return None
    return PruningPlan.load(path).summary.get("reduction")


def sparsity_of(checkpoint: Checkpoint, progress: Progress = silent) -> float | None:
    """The share of weights that are zero, plus or minus; None if a tensor cannot be read as numbers."""
    if quantized_as(checkpoint):
        return None
    zeros, done = 0, 0
    for info in checkpoint.tensors.values():
        if info.dtype not in DTYPES:
            return None
        zeros += _zeros(checkpoint, info)
        done += info.nbytes
        progress("counting zeros", done, checkpoint.nbytes)
    return zeros / checkpoint.parameters


def _zeros(checkpoint: Checkpoint, info: TensorInfo) -> int:
    """A chunk of rows at a time, so that memory is bounded by the largest row."""
    if not info.shape:
        return int(not np.any(checkpoint.read(info.name)))
    rows = max(1, _CHUNK_ENTRIES // max(1, prod(info.shape[1:])))
    chunks = (
        checkpoint.read(info.name, (slice(start, min(start + rows, info.shape[0])),))
        for start in range(0, info.shape[0], rows)
    )
    return sum(chunk.size - int(np.count_nonzero(chunk)) for chunk in chunks)
