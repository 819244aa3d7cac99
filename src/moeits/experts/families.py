"""Which tensors of a checkpoint are experts, routers and shared experts: names, not modules.

Weight-only pruning needs no model class, so a family of models is an entry of `families.toml`: names of tensors and
config keys. To add one, add an entry (docs/extending.md); the contract tests take it from there.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, structs

from moeits.errors import CheckpointError, FamilyError, UnknownArchitecture
from moeits.experts.rules import Config, Groups, Layers, Number, number
from moeits.experts.well_formed import check_entry
from moeits.typed_json import NotOfItsType, convert_typed

TABLE = Path(__file__).with_name("families.toml")

# Names under which configs keep the number of routed experts; transformers reads some of them as others of them.
COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

RESERVED = _DEFAULTS, _REFUSED = "defaults", "refused"
"""Headings of a table that are not of a family."""

RECORDED = "family"
"""Key of moeits' own block in config.json: the description of a family that the table does not have."""

_DESCRIBE_IT = "moeits inspect MODEL --explain prints a description to start from, for --architecture."


class Architecture(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"limit": "groups", "least": "least_experts"},
):
    """Where one family of models keeps its experts. All names below `blocks` are relative to the MoE block."""

    model_type: str
    """As in config.json; also the name of the entry."""
    models: str = ""
    """Models of the family by the names that people know, for the table of families."""
    part: str = ""
    """Where in config.json the config of the model with the experts is, if it is one of several: a key, or keys
    joined by dots."""
    prefixes: tuple[str, ...] = ()
    """What the names of its tensors begin with there, before the list of its layers; the one in memory comes last."""
    of_any: bool = False
    """Whether that part may be of any family: then the entry of its own model_type describes it, below `prefixes`."""
    auto_class: str = "AutoModelForCausalLM"
    """The class of transformers that opens any checkpoint of this kind."""
    class_on_hub: bool = False
    """Whether the class of its models is code that each checkpoint brings, since transformers has none."""
    model_class: str = ""
    """The class of transformers that opens it, where config.json on the hub names the hub's own."""
    blocks: tuple[str, ...]
    """Names of the MoE block, `{layer}` standing for the number of the decoder layer. Checkpoints written from
    transformers' memory may use another name than those on the hub, hence several; the one in memory comes last."""
    within: tuple[str, ...] = ("",)
    """What the names of the MoE's tensors begin with below `blocks`, where these are not a module of its own."""
    expert: str
    """A tensor of one routed expert. `{tensor}` is anything: weights, biases and scales move together."""
    projections: Mapping[str, str]
    """Projection -> `{tensor}` of its weight, in the order in which their redundancies are averaged. Empty where no
    checkpoint has its experts one by one."""
    fused: Mapping[str, tuple[str, ...]]
    """The same experts as 3-D tensors with the expert axis first: name -> the projections stacked in it."""
    stacking: Literal["rows", "alternating rows", "columns", "alternating columns", "rows or columns"] = "rows"
    """How. In rows: (E, 2 I, H), one projection below the other. In columns every matrix is stored the other way round,
    (E, H, 2 I), and the projections stand side by side. Alternating ones take turns. Where files have either, shapes
    tell which."""
    router: tuple[str, ...]
    """Tensors with one entry or row per expert, selection biases included; the first one must be there."""
    router_in_memory: str = ""
    """Name of the first one where transformers holds experts fused, if it is another one there."""
    affinity: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    """What makes a token's affinities to the experts of the router's logits, from which gates are taken."""
    expert_axis: Mapping[str, int] = {}
    """The axis of the experts in those tensors of the router where it is not the first."""
    extra_rows: Mapping[str, Number | int] = {}
    """Tensors of the router -> how many entries they have behind those of the routed experts: for shared experts, or
    for experts that compute nothing. They stay."""
    shared: tuple[str, ...] = ()
    """Prefixes of what else is in the MoE block: shared experts and their gates."""
    num_experts_keys: tuple[str, ...]
    """Config keys of the number of routed experts. All that are present must agree, and are rewritten."""
    top_k_key: str
    """Config key of how many experts a token is given to: a number, or a list with one for each layer."""
    top_k_aliases: tuple[str, ...] = ()
    """Other names of it in files on the hub, for configs that do not have the first."""
    table_of_tokens: str = ""
    """A tensor of the block that chooses experts by the token alone. Layers that have it are none of `layers`, and keep
    all their experts."""
    counts_apart: bool = False
    """Whether transformers' `per_layer_config` cannot hold unequal counts, since the class reads it for other things.
    They are then in moeits' own block only."""
    layers: Layers = Layers()
    """Which decoder layers have experts."""
    limit: Groups | None = None
    """Groups of experts that limit the choice of the router."""
    least: int = 1
    """Experts that each group, or the layer if it has no groups, must keep for the router to work."""

    def __post_init__(self) -> None:
        """What its type does not say. Raises ValueError."""
        check_entry(self)

    @property
    def projection_names(self) -> tuple[str, ...]:
        """The matrices of an expert, in the order in which their redundancies are averaged."""
        return tuple(projection for stacked in self.fused.values() for projection in stacked)

    def part_of(self, config: Config) -> Config:
        """The config of the model that has the experts, with what moeits itself wrote. Raises CheckpointError."""
        if not self.part:
            return config
        part: Any = config
        for key in self.part.split("."):
            part = part.get(key)
            if not isinstance(part, Mapping):
                raise CheckpointError(
                    f"config.json of this {self.model_type} checkpoint has no {self.part}, which is the config of the "
                    "model with the experts. Compare it with that of the original model."
                )
        return {**part, "moeits": config["moeits"]} if "moeits" in config else part

    def with_part(self, config: Config, part: Config) -> dict[str, Any]:
        """A copy of a config in which the model that has the experts has this config."""
        return _with_part(config, self.part.split(".") if self.part else [], part)

    def is_moe_layer(self, config: Config, layer: int) -> bool:
        """Whether a decoder layer has experts. Raises what rules raise where a config does not fit them."""
        return self.layers.have_experts(config, layer)

    def groups(self, config: Config) -> int:
        """Number of expert groups that the router's choice is limited by; 1 where it is not. Raises as rules do."""
        return self.limit.count(config) if self.limit else 1

    def least_per_group(self, config: Config) -> int:
        """Experts that each group, or the layer if it has no groups, must keep. Raises as rules do."""
        return max(self.least, self.limit.least(config, self.top_k_key) if self.limit else 1)

    def extra(self, config: Config, name: str) -> int:
        """Entries of a tensor of the router that are not of a routed expert. Raises as rules do."""
        return number(self.extra_rows.get(name, 0), config)

    def top_k_key_in(self, config: Config) -> str:
        """The key under which this config keeps top_k."""
        return next((key for key in (self.top_k_key, *self.top_k_aliases) if key in config), self.top_k_key)

    def num_experts_key(self, config: Config) -> str | None:
        """The key under which this config keeps the number of experts, if any."""
        return next((key for key in self.num_experts_keys if key in config), None)

    def count_keys(self, config: Config) -> list[str]:
        """All keys of this config that hold the number of experts: the family's own, and other names of it."""
        own = self.num_experts_key(config)
        aliases = [key for key in COUNT_KEYS if own and type(config.get(key)) is int and config[key] == config[own]]
        return list(dict.fromkeys([*(key for key in self.num_experts_keys if key in config), *aliases]))


def read_families(table: Path = TABLE, *, beside: Mapping[str, Any] | None = None) -> tuple[Architecture, ...]:
    """The families of a table, by model_type, which may be like those of the entries `beside`.

    Raises FamilyError, in a sentence, for what is not one, or for one that is described twice.
    """
    return read_entries(_entries(table), table, beside or {})


def read_entries(own: Mapping[str, Any], table: Path | str, beside: Mapping[str, Any]) -> tuple[Architecture, ...]:
    """The families of a table that was read, which is called `table`. Raises FamilyError."""
    if twice := sorted({*own} & {*beside}):
        raise FamilyError(
            f"{table} has an entry [{twice[0]}], and moeits has one already: two would be of one family. Take it out; "
            "if there is no other, leave --architecture away."
        )
    entries = {**beside, **own}
    return tuple(_family(table, name, entries) for name in sorted(own) if name not in RESERVED)


def own_entries() -> dict[str, Any]:
    """The entries of moeits' own table, as they are written."""
    return _entries(TABLE)


def _entries(table: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FamilyError(f"{table} is not a table of families: {error}. docs/extending.md shows one.") from None


def _family(table: Path | str, name: str, entries: Mapping[str, Any]) -> Architecture:
    """One entry with all that it takes from others."""
    try:
        if isinstance(entries[name], Mapping) and "model_type" in entries[name]:
            raise NotOfItsType("it has a key model_type, which is its heading already")
        return convert_typed({**_below_prefixes(_inherited(name, entries)), "model_type": name}, Architecture)
    except NotOfItsType as reason:
        raise FamilyError(f"[{name}] of {table} is not a family: {reason}. docs/extending.md lists the keys.") from None


def _below_prefixes(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry whose blocks begin with each of its `prefixes`, if it has any."""
    if "prefixes" not in entry:
        return entry
    prefixes, blocks = (convert_typed(entry[key], tuple[str, ...]) for key in ("prefixes", "blocks"))
    return {**entry, "blocks": _below(prefixes, blocks)}


def _below(prefixes: Sequence[str], blocks: Sequence[str]) -> tuple[str, ...]:
    """Each block with each prefix in the place of what comes before the list of layers, the module around `{layer}`."""
    inside = dict.fromkeys(re.sub(r"^.*\.(?=[^.]*\.\{layer\})", "", block) for block in blocks)
    return tuple(prefix + block for prefix in prefixes for block in inside)


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


def _with_part(config: Config, keys: Sequence[str], part: Config) -> dict[str, Any]:
    return {**config, keys[0]: _with_part(config[keys[0]], keys[1:], part)} if keys else dict(part)


FAMILIES: tuple[Architecture, ...] = read_families()
ARCHITECTURES: tuple[Architecture, ...] = tuple(each for each in FAMILIES if not each.class_on_hub)
"""Those that transformers has a class for."""
REFUSED: Mapping[str, str] = own_entries()[_REFUSED]
"""Families with experts that are known, and cannot be described: model_type -> why."""


def recorded_family(config: Config) -> Architecture | None:
    """What moeits wrote into a config of its family, since the table has no entry. Raises UnknownArchitecture."""
    own = config.get("moeits")
    if not isinstance(own, Mapping) or RECORDED not in own:
        return None
    try:
        found = convert_typed(own[RECORDED], Architecture)
    except NotOfItsType as reason:
        raise UnknownArchitecture(
            f"config.json describes its family under moeits.{RECORDED}, but not as a family: {reason}. Give the "
            "description that it was pruned by as --architecture."
        ) from None
    if found.model_type != config.get("model_type"):
        raise UnknownArchitecture(
            f"config.json is of type {config.get('model_type')!r:.60}, and describes {found.model_type!r:.60} under "
            f"moeits.{RECORDED}. One of the two was edited: give the right one."
        )
    return found


def known_family(config: Config) -> Architecture | None:
    """The description of a config's family: the recorded one, else that of the table; None if there is neither."""
    model_type = config.get("model_type")
    return recorded_family(config) or next((each for each in FAMILIES if each.model_type == model_type), None)


def auto_class_of(config: Config) -> str:
    """The class of transformers that opens a checkpoint, whether moeits knows its family or not."""
    known = known_family(config)
    return known.auto_class if known else "AutoModelForCausalLM"


def reads_per_layer_config(config: Config) -> bool:
    """Whether the stock class of a config reads `per_layer_config` itself, for other things than counts."""
    known = known_family(config)
    return known is not None and known.counts_apart


def model_class_of(config: Config) -> str:
    """The class that a config's family says opens it; empty where it says nothing."""
    known = known_family(config)
    return known.model_class if known else ""


def has_class_on_hub(config: Config) -> bool:
    """Whether a config's models are opened by code that their checkpoints bring, and by none of transformers."""
    known = known_family(config)
    return known is not None and known.class_on_hub


def check_stock_class(config: Config, source: str) -> None:
    """Transformers has a class for a config's models. Raises CheckpointError."""
    if has_class_on_hub(config):
        raise CheckpointError(
            f"{source} is a {config['model_type']} model, which no class of transformers opens: code that it brings "
            "does, and moeits runs no code of a checkpoint. It can be scored, planned and pruned; run it "
            "elsewhere, with trust_remote_code=True."
        )


def architecture_of(config: Config) -> Architecture:
    """The description of a config's model_type. Raises UnknownArchitecture, with the nearest known name."""
    if described := known_family(config):
        return _of_any(described, config)
    model_type = config["model_type"]
    known = {architecture.model_type: architecture for architecture in FAMILIES}
    if reason := REFUSED.get(model_type):
        raise UnknownArchitecture(
            f"moeits cannot prune a {model_type} checkpoint: {reason}. docs/architectures.md lists what can be."
        )
    if parts := [*_models_with_experts(config)]:
        wrappers = ", ".join(each.model_type for each in ARCHITECTURES if each.part)
        raise UnknownArchitecture(
            f"{model_type} is the type of several models in one, with a Mixture of Experts in its "
            f"{' and in its '.join(parts)}. moeits does not know where the tensors of {'these' if parts[1:] else 'it'} "
            f"are. It knows {wrappers}. {_DESCRIBE_IT}"
        )
    if not _has_experts(config):
        raise UnknownArchitecture(
            f"A checkpoint of type {model_type} is not a Mixture of Experts: its config.json names no experts. "
            f"moeits works on {', '.join(known)}."
        )
    raise UnknownArchitecture(
        f"No architecture {model_type!r}.{_hint(model_type, known)} Known: {', '.join(known)}. {_DESCRIBE_IT}"
    )


def _hint(model_type: str, known: Iterable[str]) -> str:
    """The nearest name of the same makers, or one spelt otherwise: alike letters say nothing of what is inside."""
    spelt = {_plain(name): name for name in known if _numbers(name) == _numbers(model_type)}
    if same := difflib.get_close_matches(_plain(model_type), spelt, n=1, cutoff=0.88):
        return f" Did you mean {spelt[same[0]]!r}?"
    makers = re.match("[a-z]*", model_type)
    alike = [name for name in known if makers and re.split("[^a-z]", name)[0] == makers[0]]
    near = difflib.get_close_matches(model_type, alike, n=1)
    return f" It may be like {near[0]!r}, of the same makers by its name." if near else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _numbers(name: str) -> str:
    return re.sub(r"[^0-9]", "", name)


def _of_any(known: Architecture, config: Config) -> Architecture:
    """A wrapper of any model with that of its model in it. Raises UnknownArchitecture, as for a model by itself."""
    if not known.of_any or not isinstance(config.get(known.part), Mapping):
        return known
    inside = architecture_of({"model_type": "", **config[known.part]})
    own = ("model_type", "models", "part", "prefixes", "of_any", "auto_class", "model_class")
    blocks = _below(known.prefixes, inside.blocks)
    return structs.replace(inside, blocks=blocks, **{name: getattr(known, name) for name in own})


def _models_with_experts(config: Config, below: str = "") -> Iterator[str]:
    """Where a config has those of other models with experts, and of what type."""
    for key, value in config.items():
        if not isinstance(value, Mapping):
            continue
        if "model_type" in value and any("expert" in name for name in value):
            yield f"{below}{key} ({value['model_type']})"
        else:
            yield from _models_with_experts(value, f"{below}{key}.")


def _has_experts(config: Config) -> bool:
    """Whether a config, or a group of its settings, names experts."""
    return any("expert" in key or (isinstance(value, Mapping) and _has_experts(value)) for key, value in config.items())
