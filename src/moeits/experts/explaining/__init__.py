"""What a checkpoint's tensors seem to be, and a description of its family to start from: `moeits inspect --explain`.

Where a family is unknown this proposes and never decides: the entry it makes is tried on the checkpoint as any other
is, and what is not certain is said.
"""

from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

from msgspec import structs

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import MoeitsError
from moeits.experts import families
from moeits.experts.described import families_of_text, with_recorded
from moeits.experts.explaining.entry import entry_of
from moeits.experts.explaining.patterns import as_shown, patterns_of
from moeits.experts.explaining.recognition import OTHER, Recognition, Unclear, recognise
from moeits.experts.families import Architecture, known_family
from moeits.experts.finding import block_name
from moeits.experts.layout import MoELayout


@dataclass(frozen=True, kw_only=True)
class Named:
    """Tensors whose names differ in numbers only."""

    name: str
    """With {layer}, {expert} and {n} in the place of numbers."""
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    count: int
    role: str
    """expert, router, shared, other (not in a MoE block) or unclear."""
    why: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What was found in a checkpoint, by its headers and config.json alone."""

    source: str
    model_type: str
    known: bool
    """Whether moeits knows the family; then nothing has to be described."""
    names: tuple[Named, ...]
    experts: int | None
    """Experts of a layer; None if no MoE block was recognised."""
    layers: tuple[int, ...]
    missing: tuple[str, ...]
    """What could not be told, or not with certainty."""
    like: tuple[str, ...]
    """Families of the table whose description fits this checkpoint as it is."""
    entry: str | None
    """A table entry in TOML."""
    fits: bool
    """Whether every tensor has one role by that entry, so that the checkpoint can be pruned by it."""
    why_not: str | None

    def facts(self) -> dict[str, Any]:
        """As a JSON value."""
        return {"kind": "explanation", **asdict(self)}


def explain(checkpoint: Checkpoint) -> Explanation:
    """What the tensors of a checkpoint are, and what an entry for its family would be."""
    patterns, config = patterns_of(checkpoint.tensors), checkpoint.config
    model_type = str(config["model_type"])
    found: Recognition | None = None
    entry, why_not, missing = None, None, list[str]()
    try:
        found = recognise(config, patterns)
        entry, missing = entry_of(model_type, config, found, patterns)
        why_not = _why_not(checkpoint, entry)
    except Unclear as reason:
        missing = [str(reason)]
    known = known_family(config) is not None
    roles = found.roles if found else {}
    before, layers = (found.expert_list, tuple(sorted(found.layers))) if found else ("", ())
    return Explanation(
        source=checkpoint.source,
        model_type=model_type,
        known=known,
        names=tuple(
            Named(
                name=as_shown(name, before),
                shapes=tuple(of.shapes),
                dtypes=tuple(of.dtypes),
                count=len(of.tensors),
                role=roles.get(name, (OTHER, ""))[0],
                why=roles.get(name, (OTHER, "no MoE block was recognised"))[1],
            )
            for name, of in patterns.items()
        ),
        experts=found.experts if found else None,
        layers=layers,
        missing=tuple(missing),
        like=tuple(each.model_type for each in families.ARCHITECTURES if _fits(checkpoint, each, layers)),
        entry=entry,
        fits=entry is not None and why_not is None,
        why_not=why_not,
    )


def _why_not(checkpoint: Checkpoint, entry: str) -> str | None:
    """Why a checkpoint cannot be pruned by an entry; None if it can."""
    try:
        (family,) = families_of_text(entry)
        _layout(checkpoint, family)
    except MoeitsError as reason:
        return str(reason)
    return None


def _fits(checkpoint: Checkpoint, family: Architecture, layers: tuple[int, ...]) -> bool:
    if layers and block_name(family, layers[0], checkpoint.tensors) is None:
        return False  # which is soon found out, where names are many
    try:
        _layout(checkpoint, structs.replace(family, model_type=checkpoint.config["model_type"]))
    except MoeitsError:
        return False
    return True


def _layout(checkpoint: Checkpoint, family: Architecture) -> MoELayout:
    tried = copy(checkpoint)
    tried.config = with_recorded(checkpoint.config, family)
    return MoELayout.of(tried, padded=True)
