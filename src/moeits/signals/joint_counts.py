"""The kernel of the pair loop: how often each pair of bins occurs in two weights of equal size.

One byte per cell keeps the table of an average pair in the second-level cache, which is what the speed of counting
depends on. A cell that passes 255 wraps to 0 and is noted in a list, so that the counts stay exact.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import ceil, log, log2

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from moeits.signals.compiling import compiled

# Larger tables are counted in bands of rows, one pass over the entries per band, in the same memory.
TABLE_BYTES = 64 << 20


def joint_count_log_count(a: np.ndarray, b: np.ndarray, bins_a: int, bins_b: int) -> float:
    """sum of c ln c over all cells of the joint histogram of two weights: N ln N minus N times the joint entropy.

    `a`, `b`: (N,) uint16 codes below `bins_a` and `bins_b`. Symmetric to the last bit: terms are summed as integers,
    scaled so that the largest possible sum, N ln N, just fits 62 bits; that leaves more digits than a float sum has.
    """
    scale = _scale(a.size)
    return sum(_take_terms(table, wrapped, scale) for table, wrapped in tables(a, b, bins_a, bins_b)) / scale


def sum_over_counts(counted: Iterable[tuple[np.ndarray, np.ndarray]], entries: int) -> float:
    """`joint_count_log_count` of a histogram that someone else has counted, to the last bit: parts of it, each as the
    different counts of its cells and how many cells have each, (D,) int64.
    """
    scale = _scale(entries)
    return sum(_terms_of(counts, times, scale) for counts, times in counted) / scale


def _scale(entries: int) -> float:
    largest = entries * log(entries) if entries > 1 else 1.0
    return 2.0 ** (61 - ceil(log2(largest)))


def tables(a: np.ndarray, b: np.ndarray, bins_a: int, bins_b: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The joint histogram of two weights, rows of it at a time: counts of cells as uint8, and the cells that passed
    255, ascending, each as often as it did.

    It is one table, which whoever takes it leaves empty.
    """
    band = max(1, min(bins_a, TABLE_BYTES // bins_b))
    table, wrapped = np.zeros(band * bins_b, np.uint8), np.empty(a.size // 256 + 1, np.uint32)
    # Counting is a call of its own: compiled into one function with the sum, it ran a tenth slower.
    for low in range(0, bins_a, band):
        if band >= bins_a and vectors_work():
            times = count_pairs(a, b, bins_b, table, wrapped)
        else:
            times = _count_band(a, b, bins_b, low, low + band, table, wrapped)
        yield table, np.sort(wrapped[:times])


@lru_cache(maxsize=1)
def vectors_work() -> bool:
    """Whether this LLVM computes cells in vectors as NumPy does; if not, they are computed one by one.

    The intrinsic below is written in words that numba and llvmlite do not promise to keep.
    """
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (2, 2 * _LANES + 5), np.uint16)
    cells = np.zeros(9, np.uint8)
    try:
        count_pairs(a, b, 3, cells, np.zeros(1, np.uint32))
    except Exception:  # whatever a compiler raises at words that it does not know
        return False
    return np.array_equal(cells, np.bincount(3 * a + b, minlength=9))


# Entries whose cells are computed at once.
_LANES = 16


@intrinsic
def _cells(_, a, b, first, width):  # type: ignore[no-untyped-def]
    """Cells a * width + b of the `_LANES` entries from `first`, two in each uint64, as one vector computation.

    Cell by cell the loads and multiplications took as long as the counting. Python has no words for a vector, so this
    is written in those of LLVM.
    """
    result = types.UniTuple(types.uint64, _LANES // 2)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        cells = ir.VectorType(ir.IntType(32), _LANES)

        def codes(array):  # type: ignore[no-untyped-def]
            start = cgutils.create_struct_proxy(a)(context, builder, value=array).data
            vector = ir.VectorType(ir.IntType(16), _LANES).as_pointer()
            loaded = builder.load(builder.bitcast(builder.gep(start, [arguments[2]]), vector))
            loaded.align = 2
            return builder.zext(loaded, cells)

        rows, columns = codes(arguments[0]), codes(arguments[1])
        zero = ir.Constant(ir.IntType(32), 0)
        one_width = builder.insert_element(ir.Constant(cells, ir.Undefined), arguments[3], zero)
        widths = builder.shuffle_vector(one_width, one_width, ir.Constant(cells, [0] * _LANES))
        both = builder.add(builder.mul(rows, widths), columns)
        pairs = builder.bitcast(both, ir.VectorType(ir.IntType(64), _LANES // 2))
        parts = [builder.extract_element(pairs, ir.Constant(ir.IntType(32), k)) for k in range(_LANES // 2)]
        return context.make_tuple(builder, signature.return_type, parts)

    return result(a, b, first, width), generate


@compiled
def count_pairs(a, b, bins_b, table, wrapped):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Count all entries into a uint8 table of zeros, cell a * bins_b + b; how often cells wrapped.

    `a`, `b`: contiguous. `wrapped`: uint32, room for N // 256 cell numbers; a cell is listed once for every time it
    wrapped.
    """
    times = 0
    width = np.uint32(bins_b)
    whole = a.size // _LANES * _LANES
    for i in range(0, whole, _LANES):
        for two in _cells(a, b, i, width):  # type: ignore[call-arg, var-annotated]
            for cell in (two & np.uint64(0xFFFFFFFF), two >> np.uint64(32)):
                # Written out both times: as a function of its own, numba counts references to the table in it.
                count = np.uint8(table[cell] + np.uint8(1))
                table[cell] = count
                if count == 0:
                    wrapped[times] = cell
                    times += 1
    for i in range(whole, a.size):
        cell = np.uint32(a[i]) * width + np.uint32(b[i])
        count = np.uint8(table[cell] + np.uint8(1))
        table[cell] = count
        if count == 0:
            wrapped[times] = cell
            times += 1
    return times


@compiled
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


@compiled
def _take_terms(table, cells, scale):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Scaled sum of c ln c over a table that is left empty; `cells` are those that passed 255, ascending, repeated."""
    total = np.int64(0)
    i = 0
    while i < cells.size:
        j = i
        while j < cells.size and cells[j] == cells[i]:
            j += 1
        count = 256 * (j - i) + table[cells[i]]
        table[cells[i]] = 0
        total += np.int64(np.rint(scale * count * np.log(count)))
        i = j
    terms = np.zeros(256, np.int64)
    for count in range(2, 256):
        terms[count] = np.int64(np.rint(scale * count * np.log(count)))
    # Eight cells at a time, because most eights hold no count above 1, and 1 ln 1 is 0.
    eights = table[: table.size // 8 * 8].view(np.uint64)
    for eight in eights:
        if eight & np.uint64(0xFEFEFEFEFEFEFEFE):
            for byte in range(8):
                total += terms[(eight >> np.uint64(8 * byte)) & np.uint64(0xFF)]
    for count in table[8 * eights.size :]:
        total += terms[count]
    table[:] = 0
    return total


@compiled
def _terms_of(counts, times, scale):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Scaled sum of c ln c over cells of which `times` hold `counts`; by the same logarithm as `_take_terms`."""
    total = np.int64(0)
    for i in range(counts.size):
        count = counts[i]
        if count > 1:
            total += times[i] * np.int64(np.rint(scale * count * np.log(count)))
    return total
