"""Base + adapter -> the tensors of the pruned checkpoint, in its own layout, names and dtypes.

    W' = W + (alpha / rank) B A        computed in float32, rounded once to the dtype the tensor is stored in

Only adapted tensors are computed, one expert at a time while they are written; all others are moved as bytes.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.checkpoint.writing import NewTensor
from moeits.errors import HealingError
from moeits.experts.layout import MoELayout
from moeits.healing.targets import Target
from moeits.surgery.fates import Compute, new_tensors

# a and b of every adapted weight, by the name of their parameter in the model.
FactorsByName = Mapping[str, np.ndarray]


# What is added to one part of a tensor, in the part's own shape.
Delta = Callable[[], np.ndarray]


def merged_tensors(
    checkpoint: Checkpoint, moe: MoELayout, targets: Iterable[Target], factors: FactorsByName, scale: float
) -> list[NewTensor]:
    """All tensors of the healed checkpoint, in the order of the pruned one's."""
    computed: dict[str, Compute] = {}
    for target in targets:
        for name, deltas in _deltas(moe, target, factors, scale).items():
            info = checkpoint.tensors[name]
            computed[name] = Compute(name, info.dtype, info.shape, _parts(checkpoint, info, deltas))
    return new_tensors(checkpoint, moe, {i: range(layer.num_experts) for i, layer in moe.layers.items()}, computed)


def _deltas(moe: MoELayout, target: Target, factors: FactorsByName, scale: float) -> dict[str, tuple[Delta, ...]]:
    """Tensor name -> what is added to it: to all of it, or to each expert of a fused tensor."""
    if target.tensor is not None:
        return {target.tensor: (partial(_delta, target, "weight", 0, factors, scale),)}
    assert target.layer is not None
    layer, architecture = moe.layers[target.layer], moe.architecture
    if layer.experts:
        return {
            layer.experts[expert][tensor]: (partial(_delta, target, projection, expert, factors, scale),)
            for expert in layer.experts
            for projection, tensor in architecture.projections.items()
        }
    return {
        layer.fused[name]: tuple(
            partial(_stacked_delta, target, stacked, expert, factors, scale) for expert in range(layer.num_experts)
        )
        for name, stacked in architecture.fused.items()
    }


def _delta(target: Target, weight: str, number: int, factors: FactorsByName, scale: float) -> np.ndarray:
    a, b = (factors[f"{target.module}.factors.{weight}.{side}"][number] for side in "ab")
    return scale * (b @ a)


def _stacked_delta(
    target: Target, stacked: tuple[str, ...], expert: int, factors: FactorsByName, scale: float
) -> np.ndarray:
    return np.concatenate([_delta(target, projection, expert, factors, scale) for projection in stacked])


def _parts(checkpoint: Checkpoint, info: TensorInfo, deltas: tuple[Delta, ...]) -> tuple[Callable[[], bytes], ...]:
    """The whole tensor, or one part for each expert in it."""
    if len(deltas) == 1 and len(info.shape) == 2:
        return (partial(_merged, checkpoint, info, deltas[0], ()),)
    return tuple(partial(_merged, checkpoint, info, delta, (expert,)) for expert, delta in enumerate(deltas))


def _merged(checkpoint: Checkpoint, info: TensorInfo, delta: Delta, where: tuple[int, ...]) -> bytes:
    stored = checkpoint.read(info.name, where)
    merged = stored.astype(np.float32)
    merged += delta()
    rounded = merged.astype(stored.dtype)
    if not np.isfinite(rounded).all():
        raise HealingError(
            f"{info.name} would not be finite with its adapter in {info.dtype}. Heal with a lower --learning-rate."
        )
    return rounded.tobytes()
