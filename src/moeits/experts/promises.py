"""What config.json promises of the MoE layers: which layers they are, with how many experts, in which groups.

Whether the tensors keep it is asked elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from msgspec import Meta

from moeits.errors import CheckpointError
from moeits.experts.families import Architecture, reads_per_layer_config
from moeits.typed_json import NotOfItsType, convert_typed

_Rank = Annotated[int, Meta(ge=1)] | None
_Ranks = dict[Annotated[int, Meta(ge=0)], Annotated[dict[str, list[_Rank]], Meta(min_length=1)]]


def per_layer_config(config: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
    """What a config says of single layers, under transformers' own key and, over that, under ours.

    Layer -> {key: value}; not only of experts. Raises CheckpointError.
    """
    of_layers = _of_layers(config.get("per_layer_config"))
    for layer, values in own_layers(config).items():
        of_layers[layer] = {**of_layers.get(layer, {}), **values}
    return of_layers


def own_layers(config: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
    """Those of our own key. Raises CheckpointError."""
    ours = config.get("moeits")
    return _of_layers(ours.get("per_layer_config") if isinstance(ours, Mapping) else ours)


def ranks_of_factors(config: Mapping[str, Any]) -> Mapping[int, Mapping[str, list[int | None]]]:
    """Of a checkpoint whose experts are stored as factors: layer -> projection -> rank of each expert, None where it is
    whole; nothing of any other. Raises CheckpointError."""
    ours = config.get("moeits")
    written = ours.get("factors") if isinstance(ours, Mapping) else None
    if written is None:
        return {}
    try:
        found: dict[int, dict[str, list[int | None]]] = convert_typed(written, _Ranks)
    except NotOfItsType as error:
        raise CheckpointError(f"moeits.factors in config.json should give ranks by layer ({error}).") from None
    if any(len({*map(len, of_layer.values())}) != 1 for of_layer in found.values()):
        raise CheckpointError("moeits.factors in config.json should give a rank for each expert of a layer.")
    return found


def check_not_factored(config: Mapping[str, Any], source: str) -> None:
    """Whatever moves or reads single experts takes none that are stored as factors. Raises CheckpointError."""
    if ranks_of_factors(config):
        raise CheckpointError(
            f"{source} stores its experts as factors (moeits prune --factors), which moeits opens, evaluates and "
            "inspects, and does nothing else with: prune its source by its plan.json without --factors."
        )


def check_not_padded(config: Mapping[str, Any], source: str) -> None:
    """Whatever chooses, removes or changes experts takes none that stand beside padding, which it would take for one of
    them. Raises CheckpointError."""
    ours = config.get("moeits")
    if isinstance(ours, Mapping) and ours.get("padding"):
        raise CheckpointError(
            f"{source} is padded with experts of zeros (--layout padded), which is for serving and comes last: prune "
            "its source by its plan.json with --layout per-layer, and begin from that."
        )


def needs_loader(config: Mapping[str, Any]) -> bool:
    """Whether layers differ in a way that only `modeling_moeits` carries out. Raises CheckpointError."""
    if ranks_of_factors(config):
        return True
    return bool(own_layers(config) or (per_layer_config(config) and not reads_per_layer_config(config)))


def _of_layers(written: Any) -> dict[int, dict[str, Any]]:
    try:
        return {int(layer): dict(values) for layer, values in (written or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"per_layer_config in config.json should map layers to their settings ({error})."
        ) from None


def num_layers(architecture: Architecture, config: Mapping[str, Any]) -> int:
    """Number of decoder layers, with experts and without. Raises CheckpointError."""
    count = architecture.layers.number(config)
    if type(count) is not int or count < 1:
        key = architecture.layers.count
        raise CheckpointError(f"config.json should give {key} as a number from 1 on; it has {count!r:.60}.")
    return count


def moe_layers(architecture: Architecture, config: Mapping[str, Any]) -> list[int]:
    """Which decoder layers have experts. Raises CheckpointError."""
    return [i for i in range(num_layers(architecture, config)) if _asked(architecture.is_moe_layer, config, i)]


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
    top_k_key = architecture.top_k_key_in(values)
    count, top_k = values.get(key), of_layer(values.get(top_k_key), index)
    if type(count) is not int or type(top_k) is not int or not 1 <= top_k <= count:
        raise CheckpointError(
            f"config.json should give {key} and {top_k_key} as numbers, the second from 1 to the first; for layer "
            f"{index} it has {count!r:.60} and {top_k!r:.60}."
        )
    return count, top_k


def of_layer(value: Any, index: int) -> Any:
    """A layer's own of a setting for all layers, which may be a list with one for each; None where it ends before."""
    return value if not isinstance(value, list) else value[index] if index < len(value) else None


def extra_rows(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, int]:
    """Entries of the router's tensors that are not of a routed expert, by name in the architecture."""
    extra = {name: _asked(architecture.extra, config, name) for name in architecture.extra_rows}
    for name, rows in extra.items():
        if rows < 0:
            raise CheckpointError(
                f"By extra_rows of {architecture.model_type} config.json gives {name} {rows} entries for others than "
                "experts, which cannot be. Compare config.json with that of the original model."
            )
    return extra


def groups(architecture: Architecture, config: Mapping[str, Any], count: int) -> tuple[int, int]:
    """Number of groups of a layer with `count` experts, and the experts that each must keep."""
    number = _asked(architecture.groups, config)
    if number < 1 or count % number:
        raise CheckpointError(f"config.json puts {count} experts into {number} groups, which cannot be of equal size.")
    return number, _asked(architecture.least_per_group, config)


def _asked(rule: Callable[..., Any], config: Mapping[str, Any], *of: int | str) -> Any:
    """What a rule of the architecture says of a config. Raises CheckpointError where the config does not fit it."""
    try:
        return rule(config, *of)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json does not say which layers of this {config['model_type']} model have experts, in which "
            f"groups, and what else its routers give tokens to ({error}). Download this file again."
        ) from None
