"""Refitted down projections on their way to disk: kept layer by layer, then put among the pruned checkpoint's bytes."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypedDict

import numpy as np

from moeits.checkpoint.reading import DTYPES, Checkpoint, TensorInfo
from moeits.checkpoint.writing import ByteRange, NewTensor
from moeits.errors import CalibrationError, CheckpointError
from moeits.experts.layout import MoELayout
from moeits.finished import FinishedParts
from moeits.refitting.down_tensors import SHARED, down_name, down_shape, is_alone
from moeits.typed_json import NotOfItsType, decode_typed


class FittedLayers:
    """What was fitted, one layer after the other; nothing of it is held in memory."""

    def __init__(self, finished: FinishedParts, layout: MoELayout, checkpoint: Checkpoint) -> None:
        self._finished, self._layout, self._checkpoint = finished, layout, checkpoint
        self._facts: dict[int, dict[str, Any]] = {}
        self._experts: dict[int, tuple[int, ...]] = {}

    def rounded(self, layer: int, expert: int, weight: np.ndarray) -> np.ndarray:
        """A weight as it will be read back, float32. Raises CalibrationError if it does not fit its dtype."""
        dtype = self._info(layer, expert).dtype
        stored = weight.astype(DTYPES[dtype]).astype(np.float32)
        if not np.isfinite(stored).all():
            raise CalibrationError(
                f"A down projection of layer {layer} would not be finite in {dtype}. Refit with more --tokens."
            )
        return stored

    def put(self, layer: int, facts: Mapping[str, Any], weights: Mapping[int, np.ndarray]) -> None:
        """Keep a layer: expert, or `SHARED` -> (H, I) float32."""
        text = np.frombuffer(json.dumps(dict(facts)).encode(), np.uint8)
        self._finished.keep_arrays(
            f"layer-{layer}", {"facts": text, **{_key(e): weight for e, weight in weights.items()}}
        )
        self._facts[layer], self._experts[layer] = dict(facts), tuple(weights)

    def get(self, layer: int) -> tuple[dict[str, Any], dict[int, np.ndarray]] | None:
        """A layer that an earlier run of the same refit finished; one that was damaged since was not finished."""
        kept = self._finished.arrays(f"layer-{layer}")
        try:
            facts, weights = (None, {}) if kept is None else (_facts_of(kept, layer), self._weights_of(kept, layer))
        except NotOfItsType:
            facts = None
        if facts is None:
            return None
        self._facts[layer], self._experts[layer] = facts, tuple(weights)
        return facts, weights

    def _weights_of(self, kept: Mapping[str, np.ndarray], layer: int) -> dict[int, np.ndarray]:
        """Expert -> (H, I) float32. Raises NotOfItsType."""
        names = {_key(e): e for e in (SHARED, *range(self._layout.layers[layer].num_experts))}
        weights = {names[name]: value for name, value in kept.items() if name in names}
        shapes = {e: down_shape(self._checkpoint, self._layout, layer, e) for e in weights}
        fit = all(value.dtype == np.float32 and value.shape == shapes[e] for e, value in weights.items())
        if len(weights) != len(kept) - 1 or not fit:
            raise NotOfItsType("it holds no such weights")
        return weights

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Of every fitted layer, in order."""
        return [self._facts[layer] for layer in sorted(self._facts)]

    def forget_all(self) -> None:
        """Leave all weights as they are."""
        self._experts = dict.fromkeys(self._experts, ())

    def computed(self) -> tuple[str, ...]:
        """Names of the tensors that are not the pruned checkpoint's, byte for byte."""
        return tuple(sorted({down_name(self._layout, i, e) for i, experts in self._experts.items() for e in experts}))

    def tensors(self) -> list[NewTensor]:
        """All tensors of the refitted checkpoint, in the order of the pruned one's."""
        made: dict[str, Callable[[], bytes]] = {}
        for layer, experts in self._experts.items():
            for e in experts:
                alone = is_alone(self._layout, layer, e)
                one = partial(self._one, layer, e) if alone else partial(self._all_of_layer, layer)
                made[down_name(self._layout, layer, e)] = one
        return [
            NewTensor(
                name=info.name,
                dtype=info.dtype,
                shape=info.shape,
                nbytes=info.nbytes,
                parts=(made.get(info.name) or ByteRange(shard=info.shard, offset=info.offset, length=info.nbytes),),
            )
            for info in self._checkpoint.tensors.values()
        ]

    def _one(self, layer: int, expert: int) -> bytes:
        return self._kept(layer)[_key(expert)].astype(DTYPES[self._info(layer, expert).dtype]).tobytes()

    def _all_of_layer(self, layer: int) -> bytes:
        whole = self._checkpoint.read(down_name(self._layout, layer, 0)).copy()
        kept = self._kept(layer)
        for expert in set(self._experts[layer]) - {SHARED}:
            weight = kept[_key(expert)].astype(whole.dtype)
            whole[expert] = weight if self._layout.architecture.stacking.endswith("rows") else weight.T
        return whole.tobytes()

    def _kept(self, layer: int) -> dict[str, np.ndarray]:
        kept = self._finished.arrays(f"layer-{layer}")
        if kept is None:
            raise CheckpointError(f"The fitted weights of layer {layer} are gone. Refit again.")
        return kept

    def _info(self, layer: int, expert: int) -> TensorInfo:
        return self._checkpoint.tensors[down_name(self._layout, layer, expert)]


def _key(expert: int) -> str:
    return "shared" if expert == SHARED else f"expert.{expert}"


class _Fit(TypedDict):
    """Of the facts of a layer, those that a card tells and others cannot do without."""

    layer: int
    ridge: float | None


def _facts_of(kept: Mapping[str, np.ndarray], layer: int) -> dict[str, Any]:
    """What is known of a fitted layer. Raises NotOfItsType."""
    text = kept.get("facts", np.zeros(0)).tobytes()
    if decode_typed(text, _Fit)["layer"] != layer:
        raise NotOfItsType("it is of another layer")
    return decode_typed(text, dict[str, Any])
