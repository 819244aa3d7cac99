"""The kernel of the pair loop: how often each pair of bins occurs in two weights of equal size.

One byte per cell keeps the table of an average pair in the second-level cache, which is what the speed of counting
depends on. A cell that passes 255 wraps to 0 and is noted in a list, so that the counts stay exact.
"""

import numba
import numpy as np

# Larger tables are counted in bands of rows, one pass over the entries per band, in the same memory.
TABLE_BYTES = 64 << 20


def joint_count_log_count(a: np.ndarray, b: np.ndarray, bins_a: int, bins_b: int) -> float:
    """sum of c ln c over all cells of the joint histogram of two weights; N ln N minus N times the joint entropy.

    `a`, `b`: (N,) uint16 codes below `bins_a` and `bins_b`. Symmetric to the last bit: the sum runs over the counts in
    ascending order, wherever their cells are.
    """
    band = max(1, min(bins_a, TABLE_BYTES // bins_b))
    return _count_log_count(a, b, bins_a, bins_b, band)


@numba.njit(nogil=True, cache=True)
def count_pairs(a, b, bins_b, table, wrapped):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Count all entries into a uint8 table of zeros, cell a * bins_b + b; how often cells wrapped.

    `wrapped`: uint32, room for N // 256 cell numbers; a cell is listed once for every time it wrapped.
    """
    times = 0
    width = np.uint32(bins_b)
    for i in range(a.size):
        cell = np.uint32(a[i]) * width + np.uint32(b[i])
        count = np.uint8(table[cell] + np.uint8(1))
        table[cell] = count
        if count == 0:
            wrapped[times] = cell
            times += 1
    return times


@numba.njit(nogil=True, cache=True)
def _count_band(a, b, bins_b, low, high, table, wrapped):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """`count_pairs` for the entries whose first code is in [low, high), on a table of those rows."""
    times = 0
    width = np.uint32(bins_b)
    for i in range(a.size):
        if low <= a[i] < high:
            cell = np.uint32(a[i] - low) * width + np.uint32(b[i])
            count = np.uint8(table[cell] + np.uint8(1))
            table[cell] = count
            if count == 0:
                wrapped[times] = cell
                times += 1
    return times


@numba.njit(nogil=True, cache=True)
def _count_log_count(a, b, bins_a, bins_b, band):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    table = np.zeros(band * bins_b, np.uint8)
    wrapped = np.empty(a.size // 256 + 1, np.uint32)
    large = np.empty(a.size // 256 + 1, np.int64)
    spectrum = np.zeros(256, np.int64)
    larges = 0
    for low in range(0, bins_a, band):
        if band >= bins_a:
            times = count_pairs(a, b, bins_b, table, wrapped)
        else:
            times = _count_band(a, b, bins_b, low, low + band, table, wrapped)
        larges = _take_out_wrapped(table, np.sort(wrapped[:times]), large, larges)
        _add_spectrum(table, spectrum)
    total = 0.0
    for count in range(2, 256):
        total += spectrum[count] * (count * np.log(count))
    for count in np.sort(large[:larges]):
        total += count * np.log(count)
    return total


@numba.njit(nogil=True, cache=True)
def _take_out_wrapped(table, cells, large, larges):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Move the cells that passed 255 from the table to the list of large counts; the new length of that list."""
    i = 0
    while i < cells.size:
        j = i
        while j < cells.size and cells[j] == cells[i]:
            j += 1
        large[larges] = 256 * (j - i) + table[cells[i]]
        table[cells[i]] = 0
        larges += 1
        i = j
    return larges


@numba.njit(nogil=True, cache=True)
def _add_spectrum(table, spectrum):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """How many cells have each count; leaves a table of zeros. Four counters, as neighbours often count alike."""
    part = np.zeros((4, 256), np.int64)
    whole = table.size // 4 * 4
    for i in range(0, whole, 4):
        part[0, table[i]] += 1
        part[1, table[i + 1]] += 1
        part[2, table[i + 2]] += 1
        part[3, table[i + 3]] += 1
    for i in range(whole, table.size):
        part[0, table[i]] += 1
    table[:] = 0
    for count in range(256):
        spectrum[count] += part[0, count] + part[1, count] + part[2, count] + part[3, count]
