"""A table entry, as a person would write it for `--architecture`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from moeits.experts.explaining.layer_rules import group_rule, layer_rule
from moeits.experts.explaining.patterns import NUMBER
from moeits.experts.explaining.recognition import UNCLEAR, Patterns, Recognition, Unclear
from moeits.experts.explaining.weights import fused_of, projections_of
from moeits.experts.families import RESERVED, own_entries


def entry_of(
    model_type: str, config: Mapping[str, Any], found: Recognition, patterns: Patterns
) -> tuple[str, list[str]]:
    """The text of an entry, with the keys that are not the defaults; and what is not certain in it.

    Raises Unclear where no table could hold it.
    """
    if model_type in RESERVED:
        raise Unclear(f"no entry can be headed [{model_type}], which heads something else in every table")
    keys, doubts = _names(found, patterns)
    if found.part.path:
        keys["part"] = found.part.path
    if found.part.path and _sees_or_hears(config):
        keys["auto_class"] = "AutoModelForImageTextToText"
        doubts.append("the class of transformers that opens it (auto_class)")
    own, count = found.part.config, found.experts
    keys["num_experts_keys"] = [key for key, value in found.part.counts.items() if value == count]
    top_k = found.top_k_keys()
    if not top_k:
        doubts.append("under which key config.json keeps how many experts a token is sent to (top_k_key)")
    keys["top_k_key"] = top_k[0] if top_k else "?"
    rule = layer_rule(own, found.layers)
    if rule is None:
        doubts.append("which layers have experts by config.json (layers)")
    keys |= {"layers": rule} if rule else {}
    groups = group_rule(own)
    keys |= {"groups": groups} if groups else {}
    if _sigmoid(found, own):
        keys["affinity"] = "sigmoid"
    if groups and len(found.router) > 1:
        keys["least_experts"] = 2  # a group is judged by its best two, where there is a selection bias
    usual = own_entries()["defaults"]
    own_keys = {key: value for key, value in keys.items() if usual.get(key) != value}
    lines = [f"[{_key(model_type)}]", *(f"{key} = {_toml(value)}" for key, value in own_keys.items())]
    return "\n".join(lines) + "\n", doubts


def _names(found: Recognition, patterns: Patterns) -> tuple[dict[str, Any], list[str]]:
    """Block, experts, router and shared experts."""
    block = found.block.replace(NUMBER, "{layer}", 1)
    keys: dict[str, Any] = {"blocks": [block]}
    beside = [name for name, (role, _) in found.roles.items() if role == UNCLEAR and not name.startswith(found.block)]
    if found.expert_list:
        inside = found.expert_list.removeprefix(f"{found.block}.")
        keys["expert"] = f"{inside}.{{expert}}.{{tensor}}"
        keys["projections"], doubts = projections_of(found, patterns)
        stacked = [name for name in ("gate", "up") if name in keys["projections"]]
        keys["fused"] = {f"{inside}.{'_'.join(stacked)}_proj": stacked, f"{inside}.down_proj": ["down"]}
    else:
        keys["projections"] = {}
        keys["fused"], stacking, doubts = fused_of(found, patterns)
        keys |= {"stacking": stacking} if stacking != "rows" else {}
    if found.block.endswith(f".{NUMBER}"):
        doubts = [*doubts, "which tensors of the layer are of shared experts, for its experts lie beside all the rest"]
    doubts = [
        *doubts,
        *(
            f"whether {name.replace(NUMBER, '{layer}', 1)} is of the router, for it lies outside the block"
            for name in beside
        ),
    ]
    keys["router"] = found.router
    keys |= {"expert_axis": found.expert_axis} if found.expert_axis else {}
    keys |= {"shared": found.shared} if found.shared else {}
    return keys, doubts


def _sigmoid(found: Recognition, config: Mapping[str, Any]) -> bool:
    """What the config says makes gates of logits; where it says nothing, a selection bias goes with sigmoids."""
    said = [value for key, value in config.items() if re.search(r"scor\w*_func|score_function|moe_router_activ", key)]
    return "sigmoid" in said if said else any("bias" in name for name in found.router[1:] if "gate.bias" not in name)


def _sees_or_hears(config: Mapping[str, Any]) -> bool:
    return any(re.search(r"vision|audio|image", key) for key, value in config.items() if isinstance(value, Mapping))


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(of)}" for key, of in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    """In quotes, every character that is not plain as its number. Raises Unclear for half of a surrogate pair."""
    if half := re.search("[\ud800-\udfff]", value):
        raise Unclear(f"a name in it has a character that no TOML file can hold (U+{ord(half[0]):04X})")
    return '"' + re.sub(r'["\\]|[^ -~]', lambda found: _escape(found[0]), value) + '"'


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\{character}" if character in '"\\' else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)
