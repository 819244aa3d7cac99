"""Which tensors of a checkpoint are experts, routers and shared experts: names, not modules.

Weight-only pruning needs no model class, so a family of models is an entry of `families.toml`: names of tensors and
config keys. To add one, add an entry (docs/extending.md); the contract tests take it from there.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from moeits.errors import FamilyError, UnknownArchitecture
from moeits.experts.rules import Config, Groups, Layers
from moeits.typed_json import NotOfItsType, convert_typed

TABLE = Path(__file__).with_name("families.toml")

# Names under which configs keep the number of routed experts; transformers reads some of them as others of them.
COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

_DEFAULTS = "defaults"


class Architecture(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"limit": "groups", "least": "least_experts"}
):
    """Where one family of models keeps its experts. All names below `blocks` are relative to the MoE block."""

    model_type: str
    """As in config.json; also the name of the entry."""
    models: str = ""
    """Models of the family by the names that people know, for the table of families."""
    model_class: str = ""
    """The class of transformers that opens it, where config.json on the hub names the hub's own."""
    blocks: tuple[str, ...]
    """Names of the MoE block, `{layer}` standing for the number of the decoder layer. Checkpoints written from
    transformers' memory may use another name than those on the hub, hence several; the one in memory comes last."""
    expert: str
    """A tensor of one routed expert. `{tensor}` is anything: weights, biases and scales move together."""
    projections: Mapping[str, str]
    """Projection -> `{tensor}` of its weight, in the order in which their redundancies are averaged. Empty where no
    checkpoint has its experts one by one."""
    fused: Mapping[str, tuple[str, ...]]
    """The same experts as 3-D tensors with the expert axis first: name -> the projections stacked in it."""
    stacking: Literal["rows", "columns", "alternating columns"] = "rows"
    """How. In rows: (E, 2 I, H), one projection below the other. In columns every matrix is stored the other way round,
    (E, H, 2 I), and the projections stand side by side or take turns."""
    router: tuple[str, ...]
    """Tensors with one entry or row per expert, selection biases included; the first one must be there."""
    router_in_memory: str = ""
    """Name of the first one where transformers holds experts fused, if it is another one there."""
    affinity: Literal["softmax", "sigmoid"] = "softmax"
    """What makes a token's affinities to the experts of the router's logits, from which gates are taken."""
    expert_axis: Mapping[str, int] = {}
    """The axis of the experts in those tensors of the router where it is not the first."""
    shared: tuple[str, ...] = ()
    """Prefixes of what else is in the MoE block: shared experts and their gates."""
    num_experts_keys: tuple[str, ...]
    """Config keys of the number of routed experts. All that are present must agree, and are rewritten."""
    top_k_key: str
    layers: Layers = Layers()
    """Which decoder layers have experts."""
    limit: Groups | None = None
    """Groups of experts that limit the choice of the router."""
    least: int = 1
    """Experts that each group, or the layer if it has no groups, must keep for the router to work."""

    @property
    def projection_names(self) -> tuple[str, ...]:
        """The matrices of an expert, in the order in which their redundancies are averaged."""
        return tuple(projection for stacked in self.fused.values() for projection in stacked)

    def is_moe_layer(self, config: Config, layer: int) -> bool:
        """Whether a decoder layer has experts. Raises what rules raise where a config does not fit them."""
        return self.layers.have_experts(config, layer)

    def groups(self, config: Config) -> int:
        """Number of expert groups that the router's choice is limited by; 1 where it is not. Raises as rules do."""
        return self.limit.count(config) if self.limit else 1

    def least_per_group(self, config: Config) -> int:
        """Experts that each group, or the layer if it has no groups, must keep. Raises as rules do."""
        return max(self.least, self.limit.least(config, self.top_k_key) if self.limit else 1)

    def num_experts_key(self, config: Config) -> str | None:
        """The key under which this config keeps the number of experts, if any."""
        return next((key for key in self.num_experts_keys if key in config), None)

    def count_keys(self, config: Config) -> list[str]:
        """All keys of this config that hold the number of experts: the family's own, and other names of it."""
        own = self.num_experts_key(config)
        aliases = [key for key in COUNT_KEYS if own and type(config.get(key)) is int and config[key] == config[own]]
        return list(dict.fromkeys([*(key for key in self.num_experts_keys if key in config), *aliases]))


def read_families(table: Path = TABLE) -> tuple[Architecture, ...]:
    """The families of a table, by model_type. Raises FamilyError, in a sentence, for what is not one."""
    try:
        entries = tomllib.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FamilyError(f"{table} is not a table of families: {error}. docs/extending.md shows one.") from None
    return tuple(_family(table, name, entries) for name in sorted(entries) if name != _DEFAULTS)


def _family(table: Path, name: str, entries: Mapping[str, Any]) -> Architecture:
    """One entry with all that it takes from others."""
    try:
        return convert_typed({**_inherited(name, entries), "model_type": name}, Architecture)
    except NotOfItsType as reason:
        raise FamilyError(f"[{name}] of {table} is not a family: {reason}. docs/extending.md lists the keys.") from None


def _inherited(name: object, entries: Mapping[str, Any], below: tuple[str, ...] = ()) -> dict[str, Any]:
    """An entry's keys, over those of the entry that it is like, over the defaults. `models` are an entry's own."""
    entry = entries.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or not isinstance(entry, Mapping) or name in below:
        raise NotOfItsType(f"it is like {name!r:.60}, which is " + ("like it" if name in below else "not an entry"))
    if name == _DEFAULTS:
        return dict(entry)
    inherited = _inherited(entry.get("like", _DEFAULTS), entries, (*below, name))
    own = {key: value for key, value in entry.items() if key != "like"}
    return {**inherited, "models": "", **own}


ARCHITECTURES: tuple[Architecture, ...] = read_families()


def model_class_of(config: Config) -> str:
    """The class that a config's family says opens it; empty where it says nothing."""
    model_type = config.get("model_type")
    return next((each.model_class for each in ARCHITECTURES if each.model_type == model_type), "")


def architecture_of(config: Config) -> Architecture:
    """The description of a config's model_type. Raises UnknownArchitecture, with the nearest known name."""
    model_type = config["model_type"]
    known = {architecture.model_type: architecture for architecture in ARCHITECTURES}
    if model_type in known:
        return known[model_type]
    if part := next((key for key, value in config.items() if isinstance(value, Mapping) and _has_experts(value)), None):
        raise UnknownArchitecture(
            f"A {model_type} checkpoint is several models in one, and has its Mixture of Experts in its {part} "
            f"({config[part].get('model_type', 'of no model_type')}). moeits works on text models that stand by "
            "themselves; docs/extending.md says what it knows of names."
        )
    if not _has_experts(config):
        raise UnknownArchitecture(
            f"A {model_type} checkpoint is not a Mixture of Experts: its config.json names no experts. "
            f"moeits works on {', '.join(known)}."
        )
    near = difflib.get_close_matches(model_type, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownArchitecture(
        f"No architecture {model_type!r}.{hint} Known: {', '.join(known)}. docs/extending.md shows how to add one."
    )


def _has_experts(config: Config) -> bool:
    return any("expert" in key for key in config)
