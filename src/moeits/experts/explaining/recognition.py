"""Whose the tensors of an unknown family seem to be: by the counts in config.json and by shapes.

This is a proposal for a person, who puts it into a description; nothing is pruned by it. What is not certain gets no
role, so that the description made of it is refused where it would have been a guess.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from moeits.experts import families
from moeits.experts.explaining.patterns import NUMBER, Pattern
from moeits.experts.finding import belongs_to

Config = Mapping[str, Any]
Patterns = Mapping[str, Pattern]

EXPERT, ROUTER, SHARED, OTHER, UNCLEAR = "expert", "router", "shared", "other", "unclear"

_NOT_A_COUNT = re.compile(
    r"per_tok|shared|size|dim|group|layer|freq|step|period|offset|top_?k|_k$|capacity|zero|norm|interval|redundant|null"
)
_TOP_K = re.compile(r"per_tok|top_?k$|moe_k$")
_OF_A_ROUTER = re.compile(r"(^|[._])(gate|router|wg|classifier)([._]|$)")


# No model comes near; each layer is asked whether a rule gives it experts.
_MOST_LAYERS = 10_000


class Unclear(Exception):
    """Why no MoE block can be told; the message is the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A config within config.json that could be of the model with experts."""

    path: str
    """Keys joined by dots; empty for config.json itself."""
    config: Config
    counts: Mapping[str, int]
    """Keys that could hold the number of experts."""

    @property
    def hidden(self) -> int:
        """Width of the residual stream; 0 if the config does not say."""
        width = self.config.get("hidden_size", self.config.get("d_model"))
        return width if type(width) is int else 0


@dataclass(kw_only=True)
class Recognition:
    """What seems to be what."""

    part: Part
    experts: int
    block: str
    """The MoE block's pattern."""
    expert_list: str = ""
    """The pattern before the number of an expert; empty where experts are fused."""
    layers: set[int] = field(default_factory=set)
    roles: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Pattern -> its role, and why."""
    router: list[str] = field(default_factory=list)
    """Names in the block, the weight first."""
    expert_axis: dict[str, int] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)

    def inside(self, patterns: Patterns) -> dict[str, Pattern]:
        """Name within the block -> its pattern, of those that layers with experts have."""
        before = f"{self.block}."
        return {
            name.removeprefix(before): of
            for name, of in patterns.items()
            if name.startswith(before) and of.layers & self.layers
        }

    def fused(self, patterns: Patterns) -> list[str]:
        """Names in the block of tensors that hold all experts; none where each has its own."""
        inside = {} if self.expert_list else self.inside(patterns)
        return [
            name
            for name, pattern in inside.items()
            if all(len(shape) > 2 and shape[0] == self.experts for shape in pattern.shapes)
        ]

    def top_k_keys(self) -> list[str]:
        """Keys that could hold how many experts a token is sent to, the likeliest first."""
        usual = dict.fromkeys(each.top_k_key for each in families.ARCHITECTURES)
        named = {key: value for key, value in self.part.config.items() if key in usual or _TOP_K.search(key)}
        fitting = [key for key, value in named.items() if type(value) is int and 1 <= value <= self.experts]
        return sorted(fitting, key=lambda key: (key not in usual, "per_tok" not in key))


def recognise(config: Config, patterns: Patterns) -> Recognition:
    """Where the experts of a checkpoint are. Raises Unclear."""
    parts = list(_parts(config))
    if not any(part.counts for part in parts):
        raise Unclear("config.json has no number of experts beside a num_hidden_layers")
    found = {each.block: each for part in parts for each in (*_one_by_one(part, patterns), *_fused(part, patterns))}
    if not found:
        numbers = sorted({f"{key} {value}" for part in parts for key, value in part.counts.items()})
        raise Unclear(
            f"no list of experts, and no tensor of three axes with a router, has {' or '.join(numbers)} entries"
        )
    if len(found) > 1:
        raise Unclear(f"there are MoE blocks under several names: {', '.join(_shown(block) for block in found)}")
    (only,) = found.values()
    _give_roles(only, patterns)
    return only


def _shown(block: str) -> str:
    return block.replace(NUMBER, "{layer}", 1)


def _parts(config: Config, below: str = "") -> Iterator[Part]:
    layers = config.get("num_hidden_layers")
    if type(layers) is int and 0 < layers <= _MOST_LAYERS:
        counts = {
            key: value
            for key, value in config.items()
            if "expert" in key and type(value) is int and value > 1 and not _NOT_A_COUNT.search(key)
        }
        yield Part(path=below, config=config, counts=counts)
    for key, value in config.items():
        if isinstance(value, Mapping) and key != "moeits":
            yield from _parts(value, f"{below}.{key}" if below else key)


def _one_by_one(part: Part, patterns: Patterns) -> Iterator[Recognition]:
    """Blocks with a list whose members have the numbers 0 to E - 1 in each layer."""
    lists: dict[str, dict[int, set[int]]] = {}
    for name, pattern in patterns.items():
        first, _, rest = name.partition(f".{NUMBER}.")
        middle, is_list, _ = rest.partition(f".{NUMBER}.")
        if is_list and not _is_mtp(name):
            of_layer = lists.setdefault(f"{first}.{NUMBER}.{middle}", {})
            for numbers in pattern.tensors:
                if len(numbers) > 1:
                    of_layer.setdefault(numbers[0], set()).add(numbers[1])
    for name, layers in lists.items():
        own = {layer: ids for layer, ids in layers.items() if layer < part.config["num_hidden_layers"]}
        count = len(next(iter(own.values()), ()))
        if count in part.counts.values() and all(ids == {*range(count)} for ids in own.values()):
            block = _block_above(name, part, count, patterns)
            if block is not None:
                yield Recognition(part=part, experts=count, block=block, expert_list=name, layers={*own})


def _fused(part: Part, patterns: Patterns) -> Iterator[Recognition]:
    """Blocks with tensors of three axes or more, the first of which has E entries."""
    for name, pattern in patterns.items():
        counts = {shape[0] for shape in pattern.shapes if len(shape) > 2}
        if name.count(NUMBER) != 1 or len(counts) != 1 or _is_mtp(name):
            continue
        (count,) = counts
        layers = {layer for layer in pattern.layers if layer < part.config["num_hidden_layers"]}
        if count in part.counts.values() and layers:
            block = _block_above(name.rpartition(".")[0], part, count, patterns)
            if block is not None:
                yield Recognition(part=part, experts=count, block=block, layers=layers)


def _is_mtp(name: str) -> bool:
    return re.search(r"(^|\.)mtp", name) is not None


def _block_above(inside: str, part: Part, experts: int, patterns: Patterns) -> str | None:
    """The innermost module around the experts that has a router; None if there is none in the layer."""
    at = inside.rpartition(".")[0]
    while NUMBER in at:
        if any(
            name.startswith(f"{at}.") and not name.startswith(f"{inside}.") and _is_router(pattern, part, experts)
            for name, pattern in patterns.items()
        ):
            return at
        at = at.rpartition(".")[0]
    return None


def _is_router(pattern: Pattern, part: Part, experts: int) -> bool:
    """A row for each expert, as wide as the residual stream, under a name that routers have."""
    if not pattern.all_have(2, experts) or not _named_as_router(pattern.name):
        return False
    return not part.hidden or all(shape[-1] == part.hidden for shape in pattern.shapes)


def _named_as_router(name: str) -> bool:
    known = {router for each in families.ARCHITECTURES for router in (*each.router, each.router_in_memory) if router}
    return name.endswith(tuple(f".{router}" for router in known)) or bool(_OF_A_ROUTER.search(name.rpartition(".")[0]))


def _give_roles(found: Recognition, patterns: Patterns) -> None:
    inside = found.inside(patterns)
    by_number = found.expert_list.removeprefix(f"{found.block}.")
    also, fused = _sizes_of_others(found, inside, by_number), found.fused(patterns)
    for name, pattern in inside.items():
        role, why = _role(found, name, pattern, by_number, fused, also)
        found.roles[pattern.name] = (role, why)
        if role == ROUTER:
            found.router.append(name)
            if pattern.all_have(2, found.experts, 1) and not pattern.all_have(2, found.experts):
                found.expert_axis[name] = 1
        elif role == SHARED:
            first, dot, _ = name.partition(".")
            found.shared += [] if first + dot in found.shared else [first + dot]
    # The weight first: it is what must be there.
    found.router.sort(key=lambda name: not (_is_router(inside[name], found.part, found.experts)))
    for name, pattern in patterns.items():
        if pattern.layers & found.layers and pattern.all_have(1, found.experts) and _OF_A_ROUTER.search(name):
            why = f"outside the block, with an entry for each of {found.experts} experts, and named as of a router"
            found.roles.setdefault(name, (UNCLEAR, why))
        found.roles.setdefault(name, (OTHER, "not in a MoE block" if pattern.layers else "has no number of a layer"))


def _role(
    found: Recognition, name: str, pattern: Pattern, by_number: str, fused: list[str], also: set[int]
) -> tuple[str, str]:
    experts = found.experts
    if by_number and name.startswith(f"{by_number}.{NUMBER}."):
        return EXPERT, f"numbered from 0 to {experts - 1} in each layer, as many as config.json says"
    shapes = pattern.shapes
    if name in fused:
        return EXPERT, f"three axes or more, the first with {experts} entries, as many as config.json says experts"
    if _is_router(pattern, found.part, experts):
        return ROUTER, f"a row for each of {experts} experts"
    of_each = pattern.all_have(1, experts) or (pattern.all_have(2, experts, 1) and pattern.all_have(2, 1))
    if any(belongs_to(name, own) for own in fused) and all(shape[:1] == (experts,) for shape in shapes):
        return EXPERT, f"goes with the fused experts, with {experts} entries"
    if of_each and experts not in also:
        return ROUTER, f"an entry for each of {experts} experts"
    if experts in also or not any(experts in shape for shape in shapes):
        return SHARED, "in the block, and not of so many entries as there are experts"
    return (
        UNCLEAR,
        f"in the block, with {experts} entries along an axis as for each expert, but not named as a router is",
    )


def _sizes_of_others(found: Recognition, inside: Mapping[str, Pattern], by_number: str) -> set[int]:
    """Sizes that the block's axes have for other reasons than the number of experts."""
    sizes = {found.part.hidden}
    for name, pattern in inside.items():
        for shape in pattern.shapes:
            if by_number and name.startswith(f"{by_number}.{NUMBER}."):
                sizes |= {*shape}
            elif not by_number and len(shape) > 2:
                sizes |= {*shape[1:]}
    return sizes
