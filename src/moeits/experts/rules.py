"""Which layers of a model have experts, and how many experts its router cannot do without, by its config.json.

A family names config keys (`families.toml`); what such a key means is said here, once for all families. A family that
needs another rule gets another field here. Rules raise KeyError, TypeError or ValueError where a config does not fit
them.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from msgspec import Struct

Config = Mapping[str, Any]


class Number(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A number of a config, and what is meant where a config does not give one."""

    key: str
    absent: int | None = None
    """What a config without the key means; by default it must have the key."""
    null: int | None = None
    """What null means; by default it is refused."""
    zero: int | None = None
    """What 0 means, where it does not mean 0."""

    def of(self, config: Config) -> int:
        """The number. Raises KeyError, TypeError."""
        value = config[self.key] if self.absent is None else config.get(self.key, self.absent)
        if value is None:
            value = self.null
        if type(value) is not int:
            raise TypeError(f"{self.key} is {value!r:.40}")
        return self.zero if value == 0 and self.zero is not None else value


class Every(Number, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One layer of every so many."""

    first_number: int = 0
    """What the first layer counts as."""
    offset: Number | None = None
    """The remainder of the layers with experts; 0 by default."""

    def holds(self, config: Config, layer: int) -> bool:
        """Whether it is the turn of this layer. Raises KeyError, TypeError, ZeroDivisionError."""
        return (layer + self.first_number) % self.of(config) == (self.offset.of(config) if self.offset else 0)


class Kinds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A list, or a text of letters, that gives the kind of each layer."""

    key: str
    with_experts: tuple[str | int, ...]
    """The kinds of layers that have experts."""

    def given(self, config: Config) -> bool:
        """Whether a config has it. Some keep a number under such a key, which is another rule's."""
        return isinstance(config.get(self.key), list | str)

    def hold(self, config: Config, layer: int) -> bool:
        """Whether it calls this layer one with experts. Raises ValueError where it ends before the layer."""
        kinds = config[self.key]
        if layer >= len(kinds):
            raise ValueError(f"{self.key} ends before layer {layer}")
        return kinds[layer] in self.with_experts


class Listed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A list of layers in a config."""

    key: str
    absent: tuple[int, ...] = ()
    """What a config without it means."""

    def has(self, config: Config, layer: int) -> bool:
        """Whether a layer is in it. Raises TypeError."""
        given = config.get(self.key)
        return layer in (self.absent if given is None else given)


class Layers(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"start": "from", "end": "to"},
):
    """Which layers have experts: those that fulfil all of these, unless the config enumerates them.

    All of them for a family that says nothing.
    """

    count: str = "num_hidden_layers"
    """Key of how many layers there are."""
    kinds: tuple[Kinds, ...] = ()
    """The first of these lists that a config has decides alone."""
    listed: str | None = None
    """Key of a list of the layers with experts. Where a config has it, it alone decides."""
    start: Number | int = 0
    """The first layer with experts."""
    end: Number | int = -1
    """The last layer with experts; -1 is the last of all."""
    every: Every | None = None
    but: Listed | None = None
    """Layers without experts."""
    only_if: Mapping[str, bool | str] = {}
    """Settings without which no layer has experts."""

    def number(self, config: Config) -> Any:
        """How many layers there are: as many as a config says, else as its list of kinds is long."""
        kinds = next((kinds for kinds in self.kinds if kinds.given(config)), None)
        return len(config[kinds.key]) if kinds and self.count not in config else config.get(self.count)

    def have_experts(self, config: Config, layer: int) -> bool:
        """Whether a layer has experts."""
        if any(config.get(key) != value for key, value in self.only_if.items()):
            return False
        if kinds := next((kinds for kinds in self.kinds if kinds.given(config)), None):
            return kinds.hold(config, layer)
        if self.listed and config.get(self.listed) is not None:
            return layer in _listed(config[self.listed])
        end = number(self.end, config)
        return (
            number(self.start, config) <= layer <= (config[self.count] - 1 if end == -1 else end)
            and (self.every is None or self.every.holds(config, layer))
            and not (self.but and self.but.has(config, layer))
        )


def _listed(layers: Any) -> Any:
    """A list of layers, which a config may spell as one text with commas. Raises ValueError, TypeError."""
    return [int(layer) for layer in layers.split(",")] if isinstance(layers, str) else layers


def number(of: Number | int, config: Config) -> int:
    """A number that may be one of a config. Raises KeyError, TypeError."""
    return of if isinstance(of, int) else of.of(config)


class Groups(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A router that first chooses groups of experts, then experts in the chosen groups."""

    number: Number
    """How many groups there are."""
    chosen: Number
    """How many groups a token's experts come from."""
    only_if: Mapping[str, str] = {}
    """Settings without which the router does not ask for groups."""

    def count(self, config: Config) -> int:
        """Groups that limit the choice of the router; 1 where none do."""
        asked = all(config.get(key) == value for key, value in self.only_if.items())
        return self.number.of(config) if asked else 1

    def least(self, config: Config, top_k_key: str) -> int:
        """Experts that a group must have: the chosen groups must together have the top_k experts of a token."""
        return 1 if self.count(config) == 1 else ceil(config[top_k_key] / self.chosen.of(config))
