"""What config.json promises of the MoE layers: which layers they are, with how many experts, in which groups.

Whether the tensors keep it is asked elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

from moeits.errors import CheckpointError
from moeits.experts.families import Architecture


def per_layer_config(config: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
    """The settings in which single layers differ from the config: layer -> {key: value}. Empty for stock models.

    Raises CheckpointError.
    """
    try:
        own = (config.get("moeits") or {}).get("per_layer_config")
        written = config.get("per_layer_config") or own or {}
        return {int(layer): dict(values) for layer, values in written.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"per_layer_config in config.json should map layers to their settings ({error})."
        ) from None


def num_layers(config: Mapping[str, Any]) -> int:
    """Number of decoder layers, with experts and without. Raises CheckpointError."""
    count = config.get("num_hidden_layers")
    if type(count) is not int or count < 1:
        raise CheckpointError(f"config.json should give num_hidden_layers as a number from 1 on; it has {count!r}.")
    return count


def moe_layers(architecture: Architecture, config: Mapping[str, Any]) -> list[int]:
    """Which decoder layers have experts. Raises CheckpointError."""
    return [i for i in range(num_layers(config)) if _asked(architecture.is_moe_layer, config, i)]


def counts(architecture: Architecture, config: Mapping[str, Any], index: int) -> tuple[int, int]:
    """Number of experts and top-k of one layer, by the config and its per-layer settings."""
    key = architecture.num_experts_key(config)
    if key is None:
        raise CheckpointError(
            f"config.json has no {' or '.join(architecture.num_experts_keys)}: this {architecture.model_type} "
            "checkpoint does not say how many experts it has."
        )
    own = per_layer_config(config).get(index, {})
    for values in (config, own):
        known = {key: values[key] for key in architecture.num_experts_keys if key in values}
        if any(value != values[next(iter(known))] for value in known.values()):
            raise CheckpointError(
                f"config.json gives the number of experts of layer {index} twice and not alike: "
                f"{', '.join(f'{key} {value}' for key, value in known.items())}. Leave the right one."
            )
    values = {**config, **own}
    count, top_k = values.get(key), values.get(architecture.top_k_key)
    if type(count) is not int or type(top_k) is not int or not 1 <= top_k <= count:
        raise CheckpointError(
            f"config.json should give {key} and {architecture.top_k_key} as numbers, the second from 1 to the first; "
            f"for layer {index} it has {count!r} and {top_k!r}."
        )
    return count, top_k


def groups(architecture: Architecture, config: Mapping[str, Any], count: int) -> tuple[int, int]:
    """Number of groups of a layer with `count` experts, and the experts that each must keep."""
    number = _asked(architecture.groups, config)
    if number < 1 or count % number:
        raise CheckpointError(f"config.json puts {count} experts into {number} groups, which cannot be of equal size.")
    return number, _asked(architecture.least_per_group, config)


def _asked(rule: Callable[..., Any], config: Mapping[str, Any], *of: int) -> Any:
    """What a rule of the architecture says of a config. Raises CheckpointError where the config does not fit it."""
    try:
        return rule(config, *of)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json does not say which layers of this {config['model_type']} model have experts, and in which "
            f"groups ({error}). Download this file again."
        ) from None
