"""Families that moeits does not know, by a description of the user's: a table of the form of `families.toml`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from moeits.errors import FamilyError
from moeits.experts.families import (
    RECORDED,
    Architecture,
    known_family,
    own_entries,
    read_entries,
    read_families,
)


def with_file(config: Mapping[str, Any], table: str | Path) -> dict[str, Any]:
    """A config that has the description of its family in it, from a user's table.

    Raises FamilyError if the table is not one, describes what moeits knows, or does not describe this config's family.
    """
    described = {each.model_type: each for each in read_described(Path(table))}
    family = described.get(config["model_type"])
    if family is None:
        raise FamilyError(
            f"{table} describes {', '.join(described) or 'nothing'}, and the checkpoint is of type "
            f"{config['model_type']}. The heading of an entry is the model_type in config.json."
        )
    return with_recorded(config, family)


def with_recorded(config: Mapping[str, Any], family: Architecture) -> dict[str, Any]:
    """A config that has this description of its family in it, where `recorded_family` finds it."""
    own = config.get("moeits")
    return {**config, "moeits": {**(own if isinstance(own, Mapping) else {}), RECORDED: to_builtins(family)}}


def with_family(config: Mapping[str, Any], family: Architecture | None) -> Mapping[str, Any]:
    """A config with a description that another file brought, if it is of this family and nobody else knows it."""
    if family is None or family.model_type != config["model_type"] or known_family(config):
        return config
    return with_recorded(config, family)


def families_of_text(text: str) -> tuple[Architecture, ...]:
    """The families of a table that is not in a file yet, whether moeits has an entry for them or not."""
    own = tomllib.loads(text)
    return read_entries(own, "the entry", {name: entry for name, entry in own_entries().items() if name not in own})


def read_described(table: Path) -> tuple[Architecture, ...]:
    """The families of a user's table, which may be like those of moeits'. Raises FamilyError."""
    return read_families(table, beside=own_entries())
