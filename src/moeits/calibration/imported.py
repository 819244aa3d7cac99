"""What other tools counted of a model's experts, as token signals.

    REAP's observer        a .pt of layer -> name -> numbers of each expert
    SGLang's recorder      a .json or .pt with `logical_count`, (layers, experts) or that for each step
    llama.cpp's imatrix    a .gguf with `blk.<layer>.ffn_down_exps.weight.counts`
    an order               a .jsonl of {"<layer>": [best, ..., worst]}, as vLLM's port for Ascend prunes by
    a selection            a .json of layer -> experts that were kept, such as reap_selection.json, as an order

No file of the last kind was seen: what is known of it is its purpose, so several spellings of it are taken, and another
one is refused.

A number that cannot be is refused, and so is a file of other layers or other counts than the model's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moeits.calibration.gguf import float_tensors
from moeits.errors import CalibrationError
from moeits.experts.inventory import Inventory
from moeits.runtime import need
from moeits.typed_json import MOST_BYTES, NotOfItsType, decode_typed, read_typed

Signals = dict[str, dict[int, np.ndarray]]
"""Name -> decoder layer -> (E,) float64."""

_OF_REAP = {
    "expert_frequency": "frequency",
    "weighted_expert_frequency_sum": "router-score",
    "ean_sum": "ean-sum",
    "ean_mean": "ean-mean",
    "reap": "reap",
    "max_activations": "largest-activation",
}
# What a selection may call its layers, and the experts that a layer keeps.
_LAYERS = ("layers", "selection", "kept", "keep", "retained", "kept_experts", "retained_experts")
_KEPT = ("kept", "keep", "retained", "kept_experts", "retained_experts", "kept_expert_ids", "retained_expert_ids")
_KINDS = (
    "REAP's observer (.pt), SGLang's recorder (.json, .pt), a selection (.json of layer and kept experts), an imatrix "
    "(.gguf), an order (.jsonl)"
)
_REMEDY = f"Give one of these: {_KINDS}."


def imported(path: Path, inventory: Inventory) -> Signals:
    """The signals that a file holds. Raises CalibrationError with what is wrong in it."""
    if not path.is_file():
        raise CalibrationError(f"There is no file {path}. {_REMEDY}")
    readers = {".pt": _from_torch, ".json": _from_json, ".gguf": _from_gguf, ".jsonl": _from_order}
    if path.suffix.lower() not in readers:
        raise CalibrationError(f"{path} has no ending by which it is known. {_REMEDY}")
    try:
        return _checked(readers[path.suffix.lower()](path, inventory), inventory)
    except NotOfItsType as error:
        raise CalibrationError(f"{path} cannot be taken in: {error}. {_REMEDY}") from None


def _from_torch(path: Path, inventory: Inventory) -> Signals:
    torch = need("torch", extra="load")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch makes of strangers' files is anything
        raise NotOfItsType(f"torch does not read it safely ({str(error).partition(chr(10))[0][:80]})") from None
    if not isinstance(held, dict):
        raise NotOfItsType("it is not a dictionary")
    if "logical_count" in held:
        return _counts(_numbers(held["logical_count"]), inventory)
    found: Signals = {}
    for layer, state in held.items():
        for theirs, ours in _OF_REAP.items():
            if isinstance(state, dict) and theirs in state:
                found.setdefault(ours, {})[_layer(layer)] = _numbers(state[theirs])
    if "frequency" in found:
        found["frequency"] = {layer: _shares(count) for layer, count in found["frequency"].items()}
    return found


def _numbers(held: Any) -> np.ndarray:
    """A tensor or a list of a stranger, as float64."""
    try:
        return np.asarray(held.detach().double() if hasattr(held, "detach") else held, np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise NotOfItsType("it has entries that are not numbers") from None


def _from_json(path: Path, inventory: Inventory) -> Signals:
    held = read_typed(path, dict[str, Any], error=CalibrationError, what="statistics of experts", remedy=_REMEDY)
    if "logical_count" not in held:
        return _from_selection(held, inventory)
    try:
        counts = np.array(held["logical_count"], np.float64)
    except (TypeError, ValueError):
        raise NotOfItsType("its logical_count is not an array of numbers") from None
    return _counts(counts, inventory)


def _from_selection(held: Any, inventory: Inventory) -> Signals:
    """Kept experts of each layer as an order: those that went before the others, kept ones in the order of the file."""
    order: dict[int, np.ndarray] = {}
    for layer, kept in _kept_of_each(held):
        if layer in order:
            raise NotOfItsType(f"it says twice what layer {layer} keeps")
        if layer in inventory.layers:
            order[layer] = _order_of(kept, inventory.layers[layer].num_experts, layer)
    return {"order": order}


def _kept_of_each(held: dict[str, Any]) -> Iterator[tuple[int, list[Any]]]:
    """Layer and kept experts, of {layer: kept} or [{"layer": layer, "kept": kept}]; kept is a list, or below a name."""
    layers = next((held[name] for name in _LAYERS if isinstance(held.get(name), dict | list)), held)
    if isinstance(layers, list):
        if not all(isinstance(each, dict) and "layer" in each for each in layers):
            raise NotOfItsType("its list of layers has an entry that does not say of which layer it is")
        pairs = [(each["layer"], each) for each in layers]
    else:
        pairs = list(layers.items())
    for name, kept in pairs:
        if isinstance(kept, dict):
            kept = next((kept[key] for key in _KEPT if key in kept), None)
        if not isinstance(kept, list):
            raise NotOfItsType("it has neither a logical_count nor kept experts of each layer")
        yield _layer(name), kept


def _order_of(kept: list[Any], experts: int, layer: int) -> np.ndarray:
    """(E,): the later an expert goes, the larger."""
    ids = [expert for expert in kept if type(expert) is int and 0 <= expert < experts]
    if not ids or len(set(ids)) != len(kept):
        raise NotOfItsType(f"what it keeps of layer {layer} are not ids from 0 to {experts - 1}, each once")
    gone = [expert for expert in range(experts) if expert not in set(ids)]
    return np.argsort([*gone, *reversed(ids)]).astype(np.float64)


def _counts(counts: np.ndarray, inventory: Inventory) -> Signals:
    """(layers, experts), or that for each step; rows are all decoder layers, or those with experts alone."""
    if counts.ndim == 3:
        counts = counts.sum(0)
    if counts.ndim != 2:
        raise NotOfItsType(f"its logical_count has {counts.ndim} axes, and layers and experts are two")
    layers = list(inventory.layers)
    if len(counts) == len(layers):
        rows = dict(zip(layers, counts, strict=True))
    elif len(counts) > max(layers):
        rows = {layer: counts[layer] for layer in layers}
    else:
        raise NotOfItsType(f"it counts {len(counts)} layers, and this model has experts in {len(layers)}")
    return {"frequency": {layer: _shares(row) for layer, row in rows.items()}}


def _from_gguf(path: Path, inventory: Inventory) -> Signals:  # noqa: ARG001
    before, after = "blk.", ".ffn_down_exps.weight.counts"
    held = float_tensors(path, lambda name: name.startswith(before) and name.endswith(after))
    counts = {_layer(name[len(before) : -len(after)]): values.reshape(-1) for name, values in held.items()}
    return {"frequency": {layer: _shares(values) for layer, values in counts.items()}}


def _from_order(path: Path, inventory: Inventory) -> Signals:
    order: dict[int, np.ndarray] = {}
    if path.stat().st_size > MOST_BYTES:
        raise NotOfItsType(f"it is larger than {MOST_BYTES:,} bytes")
    for line in filter(None, path.read_bytes().splitlines()):
        for layer, best_first in decode_typed(line, dict[int, list[int]]).items():
            if layer in inventory.layers and sorted(best_first) != [*range(inventory.layers[layer].num_experts)]:
                raise NotOfItsType(f"its order of layer {layer} does not name each expert once")
            order[layer] = np.argsort(best_first[::-1]).astype(np.float64)
    return {"order": order}


def _layer(name: Any) -> int:
    try:
        return int(name if type(name) in (int, str) else "")
    except ValueError:
        raise NotOfItsType(f"{str(name)[:40]!r} is not the number of a layer") from None


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(float(counts.sum()), 1.0)


def _checked(found: Signals, inventory: Inventory) -> Signals:
    """Every signal has a number for each expert of each layer of the model; what is of no MoE layer is left out."""
    if not found:
        raise NotOfItsType("it holds nothing that is known here")
    checked: Signals = {}
    for name, layers in found.items():
        for layer, facts in inventory.layers.items():
            if layer not in layers:
                raise NotOfItsType(f"it has no {name} of layer {layer}")
            values = layers[layer]
            if np.shape(values) != (facts.num_experts,):
                shape = " x ".join(map(str, np.shape(values)))
                raise NotOfItsType(f"its {name} of layer {layer} is of {shape} experts, not {facts.num_experts}")
            if not np.isfinite(values).all() or np.min(values) < 0:
                raise NotOfItsType(f"its {name} of layer {layer} has entries that are negative or not finite")
            checked.setdefault(name, {})[layer] = np.asarray(values, np.float64)
    return checked
