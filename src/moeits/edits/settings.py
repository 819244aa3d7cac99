"""The settings of all edits, by which each of them becomes a flag."""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

from moeits.edits import EDITS


def _settings_of_edits() -> Any:
    """A dataclass of the settings of all edits; None is the edit's own default. Two edits may share one."""
    known: dict[str, tuple[str, Any, Any]] = {}
    for edit in EDITS:
        hints = get_type_hints(type(edit))
        for each in fields(edit):  # type: ignore[arg-type]
            known[each.name] = (each.name, hints[each.name] | None, field(default=None, metadata=each.metadata))
    return make_dataclass("EachSetting", known.values(), frozen=True, kw_only=True, namespace={"__module__": __name__})


EachSetting: Any = _settings_of_edits()


@dataclass(frozen=True, kw_only=True)
class EditSettings(EachSetting):
    """Settings of edits, as far as they were given."""

    def of_edit(self) -> dict[str, Any]:
        """Those that are not left to the edit."""
        given = ((each.name, getattr(self, each.name)) for each in fields(EachSetting))
        return {name: value for name, value in given if value is not None}
