"""What the JSON files of a run must hold to be shown: a broken one is found while it is read, and named."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Shape = Any
"""A type; a mapping of keys to shapes; a list of one shape, which all entries have; `Each` or `Maybe`."""


@dataclass(frozen=True)
class Each:
    """A mapping whose values all have one shape, whatever their keys."""

    shape: Shape


@dataclass(frozen=True)
class Maybe:
    """A shape, or None, or no such key."""

    shape: Shape


NUMBER = int | float
_SPEED = Maybe({"tokens_per_second": NUMBER, "slowest": NUMBER, "fastest": NUMBER})
_CURVE = Maybe([{"step": NUMBER, "loss": NUMBER}])
_SAMPLES = {"original": Maybe(NUMBER), "effective": Maybe(NUMBER)}
_PROMPTS = dict.fromkeys(("requests", "requests_cut", "items_cut", "longest_tokens", "room_tokens"), NUMBER)

SHAPES: Mapping[str, Shape] = {
    "sweep": {
        "source": str,
        "model_type": str,
        "fingerprint": str,
        "settings": dict,
        "points": [{"tau": NUMBER, "folder": str}],
    },
    "ledger": {
        "entries": [{"stage": str, "seconds": NUMBER, "joules": Maybe(NUMBER), "mode": Maybe(str), "point": Maybe(str)}]
    },
    "healing": {
        "recipe_name": str,
        "recipe": {"steps": NUMBER},
        "trainable_parameters": NUMBER,
        "loss_before": Maybe(NUMBER),
        "loss_merged": Maybe(NUMBER),
        "seconds": NUMBER,
        "notes": Maybe([str]),
        "curves": Maybe({"training": _CURVE, "held_out": _CURVE}),
    },
    "footprint": {
        "parameters": Each(NUMBER),
        "tensor_bytes": NUMBER,
        "folder_bytes": NUMBER,
        "sparsity": Maybe(NUMBER),
        "flops": Maybe({"per_token": NUMBER}),
        "memory": Maybe({"peak_bytes": NUMBER}),
        "load_seconds": Maybe(NUMBER),
        "prefill": _SPEED,
        "decode": _SPEED,
        "energy": Maybe({"joules_per_token": NUMBER, "mode": Maybe(str)}),
        "machine": Maybe(dict),
        "not_measured": Each(str),
    },
    "results": {
        "model": {"parameters": Maybe(NUMBER), "bytes": Maybe(NUMBER)},
        "settings": dict,
        "versions": dict,
        "tasks": Each({"acc": Maybe(NUMBER), "acc_norm": Maybe(NUMBER), "n_samples": Maybe(_SAMPLES),
                       "chance": Maybe(NUMBER), "prompts": Maybe(_PROMPTS), "files": Maybe(dict)}),
        "perplexity": Maybe({"nats_per_token": NUMBER, "bits_per_byte": NUMBER}),
        "samples": Each(dict),
    },
}  # fmt: skip


def what_is_wrong(value: Any, shape: Shape, where: str = "") -> str | None:
    """The first place where a JSON value is not of a shape, in words; None if it is."""
    if isinstance(shape, Maybe):
        return None if value is None else what_is_wrong(value, shape.shape, where)
    if isinstance(shape, Each | dict) and not isinstance(value, dict):
        return f"{where or 'it'} is no JSON object"
    if isinstance(shape, Each):
        return _first(what_is_wrong(each, shape.shape, _inside(where, key)) for key, each in value.items())
    if isinstance(shape, dict):
        missing = [key for key, of in shape.items() if key not in value and not isinstance(of, Maybe)]
        if missing:
            return f"{where or 'it'} has no {missing[0]}"
        return _first(what_is_wrong(value.get(key), of, _inside(where, key)) for key, of in shape.items())
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where or 'it'} is no list"
        return _first(what_is_wrong(each, shape[0], f"{where}[{i}]") for i, each in enumerate(value))
    if not isinstance(value, shape) or isinstance(value, bool):
        return f"{where or 'it'} is {value!r:.40}"
    return None


def _inside(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _first(found: Any) -> str | None:
    return next((each for each in found if each), None)
