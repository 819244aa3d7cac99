"""Sizes as people write them: 12GiB, 12G, 500MB, 1048576."""

import re
from decimal import Decimal

from moeits.errors import SettingError

# As GNU's tools read them: GB counts by thousands, GiB and a mere G by 1024.
_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}{end}": 1024**power for power, letter in enumerate("kmgt", 1) for end in ("", "i", "ib")}

# Larger than any storage.
_MOST = 1024**8


def parse_size(text: str | int, flag: str) -> int:
    """Bytes of a size such as 12GiB. Raises SettingError, which names the flag the size was given to."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    size = Decimal(found[1]) * _UNITS.get(found[2].lower(), 0) if found else Decimal(0)
    if not found or found[2].lower() not in _UNITS or size > _MOST:
        shown = text if len(str(text)) <= 40 else f"{str(text)[:40]}..."
        raise SettingError(
            f"{flag} {shown} is not a size. Write it like 12GiB or 12G (GiB = 1024^3), 12GB (GB = 1000^3) or 1048576."
        )
    return int(size)


def format_size(nbytes: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1, such as 7.6 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"
