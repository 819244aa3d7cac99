"""How many bits a plan gives to each expert, as a quantizer's own file: moeits itself packs no weights."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from moeits.choosing.pruning_plan import PruningPlan
from moeits.edits import edit_of
from moeits.edits.quantize import Quantize
from moeits.errors import SettingError
from moeits.experts.layout import MoELayout

_GROUP = 128


def bits_of(plan: PruningPlan) -> dict[int, dict[int, int]]:
    """Decoder layer -> number of an expert in the pruned checkpoint -> its bits. Raises SettingError if none are."""
    edit = edit_of(plan.edit.name, plan.edit.settings) if plan.edit else None
    if plan.edit is None or not isinstance(edit, Quantize):
        raise SettingError("--write-bits writes what --edit quantize decides, and this plan has none: leave it out.")
    details = plan.edit.details
    return {
        layer: {number: edit.bits_of(details.get(layer, {}).get(expert, {})) for number, expert in enumerate(kept)}
        for layer, kept in plan.kept.items()
    }


def bits_file(path: Path, plan: PruningPlan, moe: MoELayout) -> str:
    """The text of the file: by its ending keyword arguments of GPTQModel's QuantizeConfig (.json), or a recipe of
    llm-compressor (.yaml).

    Raises SettingError for another ending, a plan without bits, a width that these have not, or a family whose experts
    are no linear layers of their own.
    """
    if path.suffix not in (".json", ".yaml"):
        raise SettingError(
            f"--write-bits {path.name[:60]} is neither .json (GPTQModel) nor .yaml (llm-compressor): give one of "
            "the two."
        )
    patterns: dict[int, list[str]] = {}
    for layer, of_layer in bits_of(plan).items():
        for number, bits in of_layer.items():
            patterns.setdefault(bits, []).append(_pattern(moe, layer, number))
    if 1 in patterns:
        raise SettingError(
            "GPTQModel and llm-compressor have no width of 1 bit, which this plan gives to some experts: plan with "
            "--bit-widths 2,3."
        )
    return _gptqmodel(patterns) if path.suffix == ".json" else _llm_compressor(patterns)


def _pattern(moe: MoELayout, layer: int, number: int) -> str:
    """A regular expression of the names of an expert's linear layers."""
    family = moe.architecture
    if not family.projections:
        raise SettingError(
            f"--write-bits names linear layers, and the experts of {family.model_type} are fused: leave it out."
        )
    before, _, _ = family.expert.format(expert=number, tensor="\0").partition("\0")
    return f"^{re.escape(moe.layers[layer].block + before)}"


def _gptqmodel(patterns: Mapping[int, list[str]]) -> str:
    """The experts by their bits, all else by 4."""
    dynamic = {f"+:{each}": {"bits": bits} for bits in sorted(patterns) for each in patterns[bits]}
    return json.dumps({"bits": 4, "group_size": _GROUP, "sym": False, "dynamic": dynamic}, indent=2) + "\n"


def _llm_compressor(patterns: Mapping[int, list[str]]) -> str:
    """The experts by their bits, and nothing else."""
    lines = [
        "quant_stage:",
        "  quant_modifiers:",
        "    GPTQModifier:",
        "      ignore: [lm_head]",
        "      config_groups:",
    ]
    for bits in sorted(patterns):
        how = f"{{num_bits: {bits}, type: int, symmetric: false, strategy: group, group_size: {_GROUP}}}"
        lines += [f"        experts_{bits}_bits:", f"          weights: {how}", "          targets:"]
        lines += [f"            - {json.dumps('re:' + each)}" for each in patterns[bits]]
    return "\n".join(lines) + "\n"
