"""The config.json of a pruned checkpoint: the source's raw JSON with new counts, never a round trip through a class.

Equal counts rewrite the family's own count key, which every stock loader reads. Unequal counts leave it alone and add
transformers' `per_layer_config`, which stock models refuse loudly and `modeling_moeits.py` carries out, and beside it
`num_experts_per_layer`, the list by which others publish and serve such checkpoints: an entry for each decoder layer,
0 where it has no experts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import to_builtins

from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import CheckpointError
from moeits.experts.families import COUNT_KEYS, RECORDED, model_class_of
from moeits.experts.layout import MoELayout
from moeits.experts.promises import num_layers, of_layer, own_layers, per_layer_config
from moeits.surgery.classic_keys import classic_keys
from moeits.surgery.settings import ONE_NUMBER
from moeits.version import __version__

LOADER_FILE = "modeling_moeits.py"
FLAT_COUNTS = "num_experts_per_layer"


def pruned_config(config: Mapping[str, Any], moe: MoELayout, plan: PruningPlan, layout: str) -> dict[str, Any]:
    """config.json for the kept experts, `layout` being "uniform", "padded" or "per-layer".

    The source's own modelling code (`auto_map`) is left out where transformers has a class for the family. Where fewer
    experts are kept than the router picks, the layer's top_k is lowered with them.
    """
    architecture, part = moe.architecture, moe.architecture.part_of(config)
    count_keys, top_k_key = architecture.count_keys(part), architecture.top_k_key_in(part)
    top_k = {i: min(layer.top_k, len(plan.kept[i])) for i, layer in moe.layers.items()}
    # transformers reads its own key in configs of models by themselves only, and for some of these means other things.
    apart = architecture.counts_apart or bool(architecture.part)
    before = own_layers(part) if apart else per_layer_config(part)
    of_layers = _without(before, {*architecture.num_experts_keys, *COUNT_KEYS, top_k_key})
    changes: dict[str, Any] = {}
    added = classic_keys(part)
    # Under which the hub's files have the count, where transformers 5 has another name for it.
    if (older := architecture.num_experts_keys[0]) not in part:
        added[older] = part[count_keys[0]]
        count_keys = [*count_keys, older]
    changes |= added
    if layout in ONE_NUMBER:
        changes |= dict.fromkeys(count_keys, max(plan.counts.values()))
        given, chosen = part.get(top_k_key), next(iter(top_k.values()))
        changes[top_k_key] = _at_most(given, chosen) if isinstance(given, list) else chosen
    else:
        for i, kept in plan.kept.items():
            lowered = {top_k_key: top_k[i]} if top_k[i] != of_layer(part.get(top_k_key), i) else {}
            of_layers[i] = {**of_layers.get(i, {}), **dict.fromkeys(count_keys, len(kept)), **lowered}
        all_of_them = dict.fromkeys(moe.whole, part.get(architecture.num_experts_key(part) or ""))
        counts = {**dict.fromkeys(range(num_layers(architecture, part)), 0), **all_of_them, **plan.counts}
        changes[FLAT_COUNTS] = [counts[i] for i in sorted(counts)]
    single = {"per_layer_config": {str(i): values for i, values in sorted(of_layers.items())}} if of_layers else {}
    ours: dict[str, Any] = {"version": __version__, "source": plan.source, "plan_sha256": plan.sha256}
    if plan.family is not None:  # so that no command on the pruned checkpoint needs the file again
        ours[RECORDED] = to_builtins(plan.family)
    gone = {"moeits", FLAT_COUNTS} | (set() if architecture.class_on_hub else {"auto_map"})
    whole, inner = ({key: value for key, value in each.items() if key not in gone} for each in (config, part))
    if apart:
        own, ours = architecture.with_part(whole, {**inner, **changes}), {**ours, **single}
    else:
        own = {**{key: value for key, value in inner.items() if key != "per_layer_config"}, **changes, **single}
    if added:
        ours["added_keys"] = sorted(added)
    if layout == "per-layer":
        own["auto_map"] = {architecture.auto_class: f"{LOADER_FILE.removesuffix('.py')}.{class_name(config)}"}
    own["moeits"] = ours
    return own


def _at_most(values: Sequence[Any], most: int) -> list[Any]:
    return [min(value, most) if type(value) is int else value for value in values]


def _without(of_layers: Mapping[int, Mapping[str, Any]], keys: set[str]) -> dict[int, dict[str, Any]]:
    """The settings of single layers that have nothing to do with their experts."""
    others = {i: {key: value for key, value in of.items() if key not in keys} for i, of in of_layers.items()}
    return {i: values for i, values in others.items() if values}


def class_name(config: Mapping[str, Any]) -> str:
    """The class of transformers that opens a config's models: the one that it names first, if it is not the hub's own.

    Raises CheckpointError if it names none.
    """
    if known := model_class_of(config):
        return known
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(
            "config.json names no class under architectures, so a checkpoint with unequal layers could not say what "
            "opens it. Add the key, or use --layout uniform."
        )
    # It goes into auto_map behind our own file: `other--file.Class` there would be code of another repository.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,199}", names[0]):
        raise CheckpointError(
            f"architectures in config.json should name a class of transformers; {names[0][:60]!r} is not the name of a "
            "class. Mend the key, or use --layout uniform."
        )
    return names[0]
