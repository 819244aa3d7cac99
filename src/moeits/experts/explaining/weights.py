"""Which weight of an expert is its gate, its up and its down projection: by the usual names, else by shapes."""

import re
from collections.abc import Mapping

from moeits.experts.explaining.patterns import Pattern
from moeits.experts.explaining.recognition import NUMBER, Patterns, Recognition

_USUAL = {
    "gate": ("gate_proj", "w1", "gate", "wi_0"),
    "up": ("up_proj", "w3", "up", "wi_1", "fc1", "linear_fc1"),
    "down": ("down_proj", "w2", "down", "wo", "fc2", "linear_fc2"),
}
_OF_DOWN = re.compile(r"down|w2|fc2|(^|[._])(wo|output_linear)")


def projections_of(found: Recognition, patterns: Patterns) -> tuple[dict[str, str], list[str]]:
    """Projection -> name of its weight in an expert, and what is not certain. Empty if it cannot be told."""
    before = f"{found.expert_list.removeprefix(found.block + '.')}.{NUMBER}."
    own = {
        name.removeprefix(before).rpartition(".")[0]: pattern
        for name, pattern in found.inside(patterns).items()
        if name.startswith(before) and "." in name.removeprefix(before)
    }
    named = {of: usual for of, usuals in _USUAL.items() for usual in usuals if usual in own}
    if {*named.values()} == {*own} and {"up", "down"} <= {*named}:
        return {of: f"{named[of]}.weight" for of in _USUAL if of in named}, []
    return _by_shapes(own, found.part.hidden)


def _by_shapes(own: Mapping[str, Pattern], hidden: int) -> tuple[dict[str, str], list[str]]:
    """Down is the one that ends in the residual stream."""
    down = [name for name, of in own.items() if all(len(s) == 2 and s[0] == hidden != s[1] for s in of.shapes)]
    others = sorted(name for name, of in own.items() if all(len(s) == 2 and s[1] == hidden != s[0] for s in of.shapes))
    if len(down) != 1 or not 1 <= len(others) <= 2 or len(own) != 1 + len(others):
        return {}, ["which weights of an expert are its projections"]
    into = ("gate", "up") if len(others) == 2 else ("up",)
    doubt = (
        [f"whether {others[0]} is the gate and {others[1]} is up, or the other way round"] if len(others) == 2 else []
    )
    return {of: f"{name}.weight" for of, name in (*zip(into, others, strict=True), ("down", down[0]))}, doubt


def fused_of(found: Recognition, patterns: Patterns) -> tuple[dict[str, list[str]], str, list[str]]:
    """Fused tensor -> the projections stacked in it; how they are stacked; and what is not certain."""
    inside = found.inside(patterns)
    shapes = {name: inside[name].shapes[0] for name in _weights(found.fused(patterns)) if name in inside}
    if len(shapes) not in (2, 3) or any(len(shape) != 3 for shape in shapes.values()):
        return {}, "rows", ["which of the fused tensors are the experts' weights, and how they are stacked"]
    stacking = _stacking(shapes, found.part.hidden)
    if not stacking:
        return {}, "rows", ["which axis of the fused tensors is as wide as the residual stream"]
    width = 1 if stacking == "rows" else 2
    down = [name for name, shape in shapes.items() if shape[width] == found.part.hidden]
    others = [name for name in shapes if name not in down]
    if len(down) != 1:
        return {}, "rows", ["which of the fused tensors is the down projection"]
    if len(others) == 2:
        gate, up = sorted(others, key=lambda name: not any(usual in name for usual in _USUAL["gate"]))
        return {gate: ["gate"], up: ["up"], down[0]: ["down"]}, stacking, []
    narrow = shapes[down[0]][3 - width]
    if shapes[others[0]][width] == narrow:
        return {others[0]: ["up"], down[0]: ["down"]}, stacking, []
    named = stacking == "rows" and "gate_up" in others[0]
    turns = [] if named else [f'whether gate and up take turns (stacking "alternating {stacking}")']
    return {others[0]: ["gate", "up"], down[0]: ["down"]}, stacking, turns


def _weights(names: list[str]) -> list[str]:
    """Those that are not companions of others."""
    return [name for name in names if not any(name != own and name.startswith((own + "_", own + ".")) for own in names)]


def _stacking(shapes: Mapping[str, tuple[int, ...]], hidden: int) -> str:
    """In rows the down projection has the residual stream in the middle, in columns last. Empty if that is not sure."""
    down = [shape for name, shape in shapes.items() if _OF_DOWN.search(name)]
    if len(down) != 1:
        down = _narrowest(list(shapes.values()), hidden)
    if len(down) != 1 or (down[0][1] == hidden) == (down[0][2] == hidden):
        return ""
    return "rows" if down[0][1] == hidden else "columns"


def _narrowest(shapes: list[tuple[int, ...]], hidden: int) -> list[tuple[int, ...]]:
    """Of a stacked and a down projection that which is half as wide; of three the one that lies the other way."""
    if len(shapes) == 3:
        return [shape for shape in shapes if shapes.count(shape) == 1]
    widths = [max({*shape[1:]} - {hidden}, default=0) for shape in shapes]
    return [shape for shape, width in zip(shapes, widths, strict=True) if 2 * width == max(widths)]
