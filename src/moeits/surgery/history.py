"""What a checkpoint went through since its experts were removed, as the files in its folder say.

    refit.json, healing.json         the last refit, the last healing
    healing-1.json, refit-1.json     one that a later of its kind came after

Each names those before it, oldest first, as `earlier`; so the card of a checkpoint that was refitted, healed and healed
again says all three.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec

from moeits.checkpoint.parts import HEALING_NAME, REFIT_NAME
from moeits.checkpoint.writing import CheckpointWriter
from moeits.errors import CheckpointError
from moeits.surgery.card import Afterwards
from moeits.surgery.healing_card import HealingOnCard, healed
from moeits.surgery.refit_card import RefitOnCard, refitted
from moeits.typed_json import read_typed

_OF_KIND: Mapping[str, tuple[Any, Callable[[Any, str], Afterwards]]] = {
    "refit": (RefitOnCard, refitted),
    "healing": (HealingOnCard, healed),
}
_NAME = re.compile(r"(refit|healing)(?:-[0-9]+)?\.json")

Name = Annotated[str, msgspec.Meta(pattern=rf"^{_NAME.pattern}\Z")]


class _Links(TypedDict, total=False):
    earlier: list[Name]


@dataclass(frozen=True)
class History:
    """The refits and healings of a checkpoint, by the names of their files, oldest first."""

    folder: Path
    names: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> "History":
        """Raises CheckpointError if a file of it cannot be read."""
        last = {
            name: _read(folder / name, _Links).get("earlier", [])
            for name in (REFIT_NAME, HEALING_NAME)
            if (folder / name).is_file()
        }
        if twice := next((name for name, before in last.items() if len({name, *before}) <= len(before)), None):
            raise CheckpointError(f"{folder / twice} names a file twice among those before it. Remove {twice}.")
        newest = max(last, key=lambda name: len(last[name]), default=None)
        return cls(folder, () if newest is None else (*last[newest], newest))

    def before(self, name: str) -> tuple[str, ...]:
        """What these files are called once another one takes this name."""
        kind = _kind(name)
        number = sum(_kind(each) == kind for each in self.names)
        return tuple(f"{kind}-{number}.json" if each == name else each for each in self.names)

    def copy(self, writer: CheckpointWriter, name: str) -> None:
        """Into a checkpoint that is being written, where another one takes this name."""
        for old, new in zip(self.names, self.before(name), strict=True):
            writer.copy(self.folder / old, new)

    def computed(self) -> frozenset[str] | None:
        """The tensors that refits computed; None after a healing, which adds to tensors that its file does not name."""
        if any(_kind(name) != "refit" for name in self.names):
            return None
        facts = (_read(self.folder / name, RefitOnCard) for name in self.names)
        return frozenset(name for each in facts for name in each["tensors"]["computed"])

    def told(self, name: str) -> list[Afterwards]:
        """As the card of that checkpoint tells them. Raises CheckpointError if a file of it cannot be read."""
        told = []
        for old, new in zip(self.names, self.before(name), strict=True):
            of, tell = _OF_KIND[_kind(old)]
            told.append(tell(_read(self.folder / old, of), new))
        return told


def _kind(name: str) -> str:
    found = _NAME.fullmatch(name)
    assert found is not None
    return found[1]


def _read(path: Path, of: Any) -> Any:
    return read_typed(
        path,
        of,
        error=CheckpointError,
        what="what moeits wrote",
        remedy="Bring it back, or remove it together with what its checkpoint says of it.",
    )
