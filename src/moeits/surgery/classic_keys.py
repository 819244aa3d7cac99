"""Keys that older readers of config.json know, beside those in which transformers 5 writes the same.

transformers 5 keeps the base of rotary embeddings inside `rope_parameters`. A reader that looks for `rope_theta` at the
top takes its own default instead, and then computes other logits than the model without a word.
"""

from collections.abc import Mapping
from typing import Any


def classic_keys(part: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be added to a config, or to the part of it that describes the text model: nothing that it has."""
    added: dict[str, Any] = {}
    if "dtype" in part:
        added["torch_dtype"] = part["dtype"]
    return {key: value for key, value in {**added, **_rotary(part)}.items() if key not in part}


def _rotary(part: Mapping[str, Any]) -> dict[str, Any]:
    """The classic spelling of `rope_parameters`; nothing where each kind of layer has its own, for it has none."""
    rope = part.get("rope_parameters")
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        return {}
    inside = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if rope.get(key) is not None}
    kind = rope.get("rope_type", "default")
    # Beside a base at the top that is another one, a reader would take that one for the scaling's.
    if (
        kind == "default"
        or "rope_theta" not in inside
        or part.get("rope_theta", rope["rope_theta"]) != rope["rope_theta"]
    ):
        return inside
    scaling = {key: value for key, value in rope.items() if key not in inside}
    return {**inside, "rope_scaling": {**scaling, "type": kind}}
