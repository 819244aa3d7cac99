"""Which keys of a config say which layers have experts, and in how many groups, as far as tensors agree."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moeits.experts.rules import Layers
from moeits.typed_json import NotOfItsType, convert_typed

Config = Mapping[str, Any]

_STARTS = re.compile(r"dense|first|start")
_OF_EXPERTS = re.compile(r"mlp|moe|ffn|sparse|expert")
_STEPS = re.compile(r"step|freq|period|interval")


def layer_rule(config: Config, layers: set[int]) -> dict[str, Any] | None:
    """The first rule, from keys to plain numbers, that gives these layers; None if none does."""
    return next((rule for rule in _rules(config, layers) if _gives(rule, config, layers)), None)


def _gives(rule: Mapping[str, Any], config: Config, layers: set[int]) -> bool:
    try:
        has = convert_typed(rule, Layers).have_experts
        return {layer for layer in range(config["num_hidden_layers"]) if has(config, layer)} == layers
    except (NotOfItsType, ArithmeticError, KeyError, TypeError, ValueError):
        return False


def _rules(config: Config, layers: set[int]) -> Iterator[dict[str, Any]]:
    everywhere = layers == {*range(config["num_hidden_layers"])}
    yield from _kinds(config, layers, of_experts=True)
    numbers = {key: value for key, value in config.items() if type(value) is int}
    starts = [key for key in numbers if _STARTS.search(key)]
    yield from ({"from": {"key": key}} for key in starts)
    if everywhere:
        yield {}
    for key in (key for key in numbers if _STEPS.search(key)):
        for first_number in (0, 1):
            every = {"key": key, **({"first_number": 1} if first_number else {})}
            yield from _every(every, starts)
            lists = [key for key, value in config.items() if isinstance(value, list) and "layer" in key]
            yield from ({"every": every, "but": {"key": key}} for key in lists)
        offsets = [other for other in numbers if "offset" in other]
        yield from ({"every": {"key": key, "offset": {"key": offset}}} for offset in offsets)
    yield from ({"listed": key} for key, value in config.items() if isinstance(value, list))
    yield from _kinds(config, layers, of_experts=False)
    yield {"from": min(layers)}
    yield {"from": min(layers), "to": max(layers)}


def _kinds(config: Config, layers: set[int], *, of_experts: bool) -> Iterator[dict[str, Any]]:
    """By a list of the layers' kinds, called after what they have for an MLP or not."""
    for key, value in config.items():
        plain = isinstance(value, list) and all(type(kind) in (str, int) for kind in value)
        if plain and len(value) >= config["num_hidden_layers"] and bool(_OF_EXPERTS.search(key)) == of_experts:
            yield {"kinds": [{"key": key, "with_experts": sorted({value[layer] for layer in layers}, key=str)}]}


def _every(every: Mapping[str, Any], starts: list[str]) -> Iterator[dict[str, Any]]:
    yield {"every": dict(every)}
    yield from ({"from": {"key": start}, "every": dict(every)} for start in starts)


def group_rule(config: Config) -> dict[str, Any] | None:
    """Groups of experts, if the config has keys for them."""
    number = next((key for key in ("n_group", "num_expert_group", "n_groups") if key in config), None)
    chosen = next((key for key in ("topk_group", "topk_groups") if key in config), None)
    if number is None or chosen is None:
        return None
    none = {"absent": 1, "null": 1, "zero": 1}
    return {"number": {"key": number, **none}, "chosen": {"key": chosen, **none}}
