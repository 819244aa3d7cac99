"""Numbers into bins: NumPy's automatic histogram of one weight, faster, and with the same bins to the last bit.

A 16-bit weight has at most 65,536 distinct values, so one counting pass gives its range, quartiles, histogram and a
table from value to bin. A float32 weight is counted twice by halves of its bits for its quartiles, and binned twice:
once to count the bins, once to number them. So neither takes memory that grows with the weight, beside the codes.
"""

import ml_dtypes
import numpy as np

from moeits.errors import NonFiniteWeight, SettingError, UnscorableWeight
from moeits.signals.compiling import compiled

# Tables and temporaries of one encoding, whatever the size of the weight: of 65,536 bit patterns, of 65,536 bins.
BINNING_BYTES = 4 << 20

_SIXTEEN_BITS = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def bin_weight(
    weight: np.ndarray, bins: str | int, positions: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N,) uint16 over the occupied bins, and their counts (B,) int64; codes of these `positions` only.

    Empty bins change no entropy, so codes are renumbered over the occupied ones: a heavy-tailed matrix of 3,397 bins
    shrinks to about 800. Raises NonFiniteWeight, UnscorableWeight for a dtype that cannot be binned, SettingError if
    float32 cannot resolve that many bins in the weight's range.
    """
    flat = weight.reshape(-1)
    if flat.size == 0:
        raise UnscorableWeight("the weight is empty")
    if flat.dtype in _SIXTEEN_BITS:
        return _bin_sixteen_bits(flat, bins, positions)
    if flat.dtype == np.float32:
        return _bin_float32(flat, bins, positions)
    raise UnscorableWeight(
        f"weights of dtype {flat.dtype} cannot be scored; score the bfloat16, float16 or float32 parent of this "
        "checkpoint, and prune with that plan and --any-fingerprint"
    )


def auto_bin_count(values: np.ndarray, counts: np.ndarray) -> int:
    """Number of bins that `np.histogram_bin_edges(x, bins="auto")` gives float32 data with these distinct values.

    `values` (V,) float32, ascending; `counts` (V,) how often each occurs. NumPy 2.4's rule, in NumPy's own precision:
    the smaller of the Sturges width and the Freedman-Diaconis width, the latter not below half the square-root rule's.
    """
    n = int(counts.sum())
    extent = values[-1] - values[0]
    cumulated = np.cumsum(counts)
    iqr = _quantile(values, cumulated, n, 0.75) - _quantile(values, cumulated, n, 0.25)
    freedman_diaconis = 2.0 * iqr * n ** (-1.0 / 3.0)
    sturges = extent / (np.log2(n) + 1.0)
    square_root = extent / np.sqrt(n)
    width = min(max(freedman_diaconis, square_root / 2), sturges)
    return int(np.ceil(extent / width)) if width else 1


def _quantile(values: np.ndarray, cumulated: np.ndarray, n: int, q: float) -> np.float64:
    """Linear-interpolated quantile of the expanded sample, rounded step by step as np.percentile rounds."""
    at = np.float64((n - 1) * q)
    before = np.floor(at)
    low, high = values[np.searchsorted(cumulated, [before, min(before + 1, n - 1)], side="right")]
    t, step = at - before, high - low
    return np.float64(high - step * (1 - t)) if t >= 0.5 else np.float64(low + step * t)


def _is_constant(low: np.float32, high: np.float32) -> bool:
    """Whether all entries of a weight with this range are equal: one bin, whatever the rule.

    Raises NonFiniteWeight, or UnscorableWeight if float32 cannot express how wide the range is.
    """
    if not np.isfinite(low) or not np.isfinite(high):
        raise NonFiniteWeight("the weight holds NaN or infinity")
    if float(high) - float(low) > float(np.finfo(np.float32).max):
        raise UnscorableWeight(
            f"its entries from {low:g} to {high:g} span more than float32 can express; the checkpoint is damaged"
        )
    return bool(low == high)


def _edges(low: np.float32, high: np.float32, number: int) -> np.ndarray:
    """Equal-width float32 edges between the two, as np.histogram makes them."""
    edges = np.linspace(low, high, number + 1, dtype=np.float32)
    if np.any(edges[:-1] >= edges[1:]):
        raise SettingError(
            f"the range {low:g} to {high:g} is too narrow for {number} bins in float32; ask for fewer with --bins"
        )
    return edges


def _bin_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value: half-open bins, the last one closed."""
    return np.minimum(np.searchsorted(edges, values, side="right") - 1, edges.size - 2)


def _one_bin(n: int, positions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(n if positions is None else positions.size, np.uint16), np.array([n])


def _some(entries: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    return entries if positions is None else entries[positions]


def _bin_sixteen_bits(flat: np.ndarray, bins: str | int, positions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    patterns = np.ascontiguousarray(flat).view(np.uint16)
    counts = _count_patterns(patterns)
    present = np.flatnonzero(counts)
    values = present.astype(np.uint16).view(flat.dtype).astype(np.float32)
    if _is_constant(values.min(), values.max()):
        return _one_bin(flat.size, positions)
    order = np.argsort(values, kind="stable")
    present, values, counts = present[order], values[order], counts[present[order]]
    number = auto_bin_count(values, counts) if bins == "auto" else int(bins)
    occupied, code = np.unique(_bin_of(values, _edges(values[0], values[-1], number)), return_inverse=True)
    table = np.zeros(65536, np.uint16)
    table[present] = code
    per_bin = np.bincount(code, weights=counts, minlength=occupied.size).astype(np.int64)
    return _look_up(_some(patterns, positions), table), per_bin


def _bin_float32(flat: np.ndarray, bins: str | int, positions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    low, high = flat.min(), flat.max()
    if _is_constant(low, high):
        return _one_bin(flat.size, positions)
    values = np.ascontiguousarray(flat)
    edges = _edges(low, high, _auto_bin_count_float32(values) if bins == "auto" else int(bins))
    counts = _count_bins(values, edges)
    occupied = np.flatnonzero(counts)
    if occupied.size > 65536:
        raise SettingError(f"{occupied.size} bins are occupied, more than 65,536; ask for fewer with --bins")
    code = np.zeros(counts.size, np.uint16)
    code[occupied] = np.arange(occupied.size, dtype=np.uint16)
    return _number_bins(_some(values, positions), edges, code), counts[occupied]


def _auto_bin_count_float32(flat: np.ndarray) -> int:
    """`auto_bin_count` of a float32 weight, from the few entries that decide it: both ends and beside each quartile."""
    n = flat.size
    beside = [np.floor(np.float64((n - 1) * q)) for q in (0.25, 0.75)]
    ranks = np.unique([0, *beside, *(min(rank + 1, n - 1) for rank in beside), n - 1]).astype(np.int64)
    # Each of them stands for all entries since the last: the sample is as long, and has the same quartiles.
    return auto_bin_count(_of_rank(flat, ranks), np.diff(ranks, prepend=-1))


def _of_rank(flat: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The entries of these ranks, 0 for the smallest, of a float32 weight without NaN; neither sorted nor copied."""
    patterns = flat.view(np.uint32)
    before = np.cumsum(_count_upper(patterns))
    upper = np.searchsorted(before, ranks, side="right")
    keys = np.empty(ranks.size, np.uint32)
    for half in np.unique(upper):
        of_half = upper == half
        rest = ranks[of_half] - (before[half - 1] if half else 0)
        keys[of_half] = half << 16 | np.searchsorted(np.cumsum(_count_lower(patterns, half)), rest, side="right")
    return np.where(keys >> 31, keys ^ np.uint32(1 << 31), ~keys).astype(np.uint32).view(np.float32)


@compiled
def _count_patterns(patterns: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    counts = np.zeros(65536, np.int64)
    for pattern in patterns:
        counts[pattern] += 1
    return counts


@compiled
def _look_up(patterns: np.ndarray, table: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    codes = np.empty(patterns.size, np.uint16)
    for i in range(patterns.size):
        codes[i] = table[patterns[i]]
    return codes


@compiled
def _key(pattern: np.uint32) -> np.uint32:  # pragma: no cover - compiled
    """A number that orders the bit patterns of float32 as their values are ordered."""
    return np.uint32(~pattern) if pattern >> np.uint32(31) else np.uint32(pattern | np.uint32(0x80000000))


@compiled
def _count_upper(patterns: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    counts = np.zeros(65536, np.int64)
    for pattern in patterns:
        counts[_key(pattern) >> np.uint32(16)] += 1
    return counts


@compiled
def _count_lower(patterns: np.ndarray, upper: int) -> np.ndarray:  # pragma: no cover - compiled
    """How often each lower half of a key occurs with this upper half."""
    counts = np.zeros(65536, np.int64)
    for pattern in patterns:
        key = _key(pattern)
        if key >> np.uint32(16) == upper:
            counts[key & np.uint32(0xFFFF)] += 1
    return counts


@compiled
def _even_bin(value: np.float32, edges: np.ndarray, scale: float) -> int:  # pragma: no cover - compiled
    """`_bin_of` for equal-width edges: guess the bin by division, then correct the guess by the edges themselves."""
    last = edges.size - 2
    guess = min(max(int((np.float64(value) - np.float64(edges[0])) * scale), 0), last)
    while guess > 0 and value < edges[guess]:
        guess -= 1
    while guess < last and value >= edges[guess + 1]:
        guess += 1
    return guess


@compiled
def _scale(edges: np.ndarray) -> float:  # pragma: no cover - compiled
    return (edges.size - 1) / (np.float64(edges[edges.size - 1]) - np.float64(edges[0]))


@compiled
def _count_bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    counts = np.zeros(edges.size - 1, np.int64)
    scale = _scale(edges)
    for value in values:
        counts[_even_bin(value, edges, scale)] += 1
    return counts


@compiled
def _number_bins(values: np.ndarray, edges: np.ndarray, code: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    codes = np.empty(values.size, np.uint16)
    scale = _scale(edges)
    for i in range(values.size):
        codes[i] = code[_even_bin(values[i], edges, scale)]
    return codes
