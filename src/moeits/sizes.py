"""Sizes as people write them: 12GiB, 500MB, 1048576."""

import re

from moeits.errors import SettingError

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}


def parse_size(text: str | int, flag: str) -> int:
    """Bytes of a size such as 12GiB. Raises SettingError, which names the flag the size was given to."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if not found or found[2].lower() not in _UNITS:
        raise SettingError(f"{flag} {text} is no size. Write it like 12GiB, 500MB or 1048576.")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def format_size(nbytes: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1, such as 7.6 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"
