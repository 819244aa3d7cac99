"""Which entries of a weight are looked at where not all are: one out of each block of consecutive ones."""

import re
from fractions import Fraction
from functools import lru_cache
from zlib import crc32

import numpy as np

from moeits.errors import SettingError

_WRITTEN = re.compile(r"(?P<value>[0-9]{0,19}\.?[0-9]{1,19})(/(?P<of>[1-9][0-9]{0,18}))?(?P<percent>%?)")

FEWEST = 256
"""Entries below which a sample says nothing of histograms of dozens of bins."""


def parsed_sample(text: str | float) -> float | int:
    """A share between 0 and 1 (0.03, 1/32, 3%), or a number of entries. Raises SettingError if it is neither."""
    wrong = SettingError(
        f"--sample {str(text)[:40]} is out of range: give a share of the entries between 0 and 1, such as 1/8, or a "
        f"number of them from {FEWEST}; leave it out for exact scores."
    )
    if isinstance(text, float) and 0 < text < 1:
        return text
    written = _WRITTEN.fullmatch(str(text).strip())
    if written is None:
        raise wrong
    value = Fraction(written["value"]) / Fraction(written["of"] or 1) / (100 if written["percent"] else 1)
    if 0 < value < 1:
        return float(value)
    if value.denominator != 1 or not FEWEST <= value <= 2**62:
        raise wrong
    return int(value)


def sample_size(sample: float | int, entries: int) -> int:
    """How many of so many entries are looked at: all of them if that is asked for, or more."""
    wanted = round(sample * entries) if sample < 1 else int(sample)
    return min(max(wanted, 1), entries)


@lru_cache(maxsize=8)
def positions(entries: int, size: int, name: str, seed: int) -> np.ndarray:
    """(size,) int64, ascending: one position out of each of `size` blocks of consecutive entries, of nearly one length.

    The same for all weights of that size and name, so that pairs are compared at the same entries. Other weights of an
    expert are looked at elsewhere, so that what the sample misses is not the same in all of them.
    """
    rng = np.random.default_rng([seed, entries, size, crc32(name.encode())])
    edges = np.arange(size + 1, dtype=np.int64) * entries // size
    chosen = rng.integers(edges[:-1], edges[1:])
    chosen.flags.writeable = False
    return chosen
