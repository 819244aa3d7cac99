"""What the model card says of quantized weights, and of a plan that was made for another form of the model."""

from collections.abc import Mapping
from typing import Any

from moeits.choosing.pruning_plan import PruningPlan
from moeits.experts.codecs import quantization_of
from moeits.printable import markdown_text


def loading_note(config: Mapping[str, Any]) -> str:
    """That what opened the source is needed to open this; empty where nothing is quantized."""
    quantization = quantization_of(config)
    if not quantization:
        return ""
    method = quantization.get("quant_method")
    by = f" by `{markdown_text(method)}`" if isinstance(method, str) and method else ""
    return (
        f"\n\nThe weights are quantized{by}, as those of the source are: each kept expert has its bytes and scales,\n"
        "and the settings name experts by their new numbers. Opening it needs what opening the source needs."
    )


def other_form_note(plan: PruningPlan) -> str:
    """Whose plan it was, where it was made for another form of the model."""
    made_for = plan.settings.get("planned_for")
    if not isinstance(made_for, str):
        return ""
    return (
        f"\nThe experts were chosen for {markdown_text(made_for)}, another form of this model, and the same ones were\n"
        "kept here (`--any-fingerprint`). That the two are one model was said by whoever ran this, not checked.\n"
    )
