"""How many bits a plan gives to each expert, as a quantizer's own file: moeits itself packs no weights."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.edits.in_order import edits_in
from moeits.edits.quantize import Quantize, group_of
from moeits.errors import SettingError
from moeits.experts.layout import MoELayout
from moeits.surgery.edited import shapes

How = tuple[int, int]
"""Bits of a weight, and how many weights of a row share a scale."""

_WIDTHS = {2, 3, 4, 8}
_GROUPS = (16, 32, 64, 128)
_WHOLE_ROWS = -1


def bits_of(plan: PruningPlan) -> dict[int, dict[int, int]]:
    """Decoder layer -> number of an expert in the pruned checkpoint -> its bits. Raises SettingError if none are."""
    found = [(step, edit) for step, edit in (edits_in(plan.edit) if plan.edit else ()) if isinstance(edit, Quantize)]
    if not found:
        raise SettingError("--write-bits writes what --edit quantize decides, and this plan has none: leave it out.")
    ((step, edit),) = found
    details = step.details
    return {
        layer: {number: edit.bits_of(details.get(layer, {}).get(expert, {})) for number, expert in enumerate(kept)}
        for layer, kept in plan.kept.items()
    }


def bits_file(path: Path, plan: PruningPlan, checkpoint: Checkpoint, moe: MoELayout) -> str:
    """The text of the file: by its ending keyword arguments of GPTQModel's QuantizeConfig (.json), or a recipe of
    llm-compressor (.yaml). Checkpoint and layout are those that are pruned.

    Raises SettingError for another ending, a plan without bits, a width that these have not, or a family whose experts
    are no linear layers of their own.
    """
    if path.suffix not in (".json", ".yaml"):
        raise SettingError(
            f"--write-bits {path.name[:60]} is neither .json (GPTQModel) nor .yaml (llm-compressor): give one of "
            "the two."
        )
    patterns: dict[How, list[str]] = {}
    for layer, of_layer in bits_of(plan).items():
        groups = _groups(checkpoint, moe, layer)
        for number, bits in of_layer.items():
            for group, projections in groups.items():
                patterns.setdefault((bits, group), []).append(_pattern(moe, layer, number, projections))
    if odd := sorted({bits for bits, _ in patterns} - _WIDTHS):
        raise SettingError(
            f"GPTQModel and llm-compressor have no width of {odd[0]} bit{'s' * (odd[0] > 1)}, which this plan gives to "
            "some experts: plan with --bit-widths 2,3,4 or 8."
        )
    return _gptqmodel(patterns) if path.suffix == ".json" else _llm_compressor(patterns)


def _groups(checkpoint: Checkpoint, moe: MoELayout, layer: int) -> dict[int, list[str]]:
    """How many weights of a row share a scale, as `rounded` has it -> the projections; -1 for whole rows."""
    found: dict[int, list[str]] = {}
    for projection, (_, inputs) in shapes(checkpoint, moe, layer).items():
        group = group_of(inputs)
        found.setdefault(_WHOLE_ROWS if group not in _GROUPS else group, []).append(projection)
    return found


def _pattern(moe: MoELayout, layer: int, number: int, projections: Sequence[str]) -> str:
    """A regular expression of the names of an expert's linear layers of these projections, on disk and in memory."""
    family = moe.architecture
    if not family.projections:
        raise SettingError(
            f"--write-bits names linear layers, and the experts of {family.model_type} are fused: leave it out."
        )
    before, _, _ = family.expert.format(expert=number, tensor="\0").partition("\0")
    blocks = (moe.layers[layer].block, family.blocks[-1].format(layer=layer) + ".")
    names = [
        name for each in projections for name in (family.projections[each].removesuffix(".weight"), f"{each}_proj")
    ]
    only = "" if len(projections) == len(family.projections) else _either(names)
    return f"^{_either(blocks)}{re.escape(before)}{only}"


def _either(names: Iterable[str]) -> str:
    """A regular expression of any of these names."""
    different = [re.escape(name) for name in dict.fromkeys(names)]
    return different[0] if len(different) == 1 else f"(?:{'|'.join(different)})"


def _gptqmodel(patterns: Mapping[How, list[str]]) -> str:
    """The experts by their bits, all else by 4."""
    dynamic = {
        f"+:{each}": {"bits": bits, "group_size": group}
        for bits, group in sorted(patterns)
        for each in patterns[bits, group]
    }
    return json.dumps({"bits": 4, "group_size": max(_GROUPS), "sym": False, "dynamic": dynamic}, indent=2) + "\n"


def _llm_compressor(patterns: Mapping[How, list[str]]) -> str:
    """The experts by their bits, and nothing else."""
    lines = [
        "quant_stage:",
        "  quant_modifiers:",
        "    GPTQModifier:",
        "      ignore: [lm_head]",
        "      config_groups:",
    ]
    for bits, group in sorted(patterns):
        whole = group == _WHOLE_ROWS
        shared = "strategy: channel" if whole else f"strategy: group, group_size: {group}"
        lines += [
            f"        experts_{bits}_bits_by_{'row' if whole else group}:",
            f"          weights: {{num_bits: {bits}, type: int, symmetric: false, {shared}}}",
            "          targets:",
        ]
        lines += [f"            - {json.dumps('re:' + each)}" for each in patterns[bits, group]]
    return "\n".join(lines) + "\n"
