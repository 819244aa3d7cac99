"""The normalized mutual information of two weights from a sample of their entries, with a standard error.

Histograms are counted over all entries, joint histograms at the sampled ones (docs/sampling.md derives every step). A
plug-in estimate is too high, and the more so the fewer entries there are. Of independent weights it is known by how
much; of others it is read off the sample itself: by how much half of it would be higher still.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from typing import TYPE_CHECKING

import numpy as np

from moeits.errors import SettingError, ShapeMismatch
from moeits.signals import Memory
from moeits.signals.nmi import NMI, Codes, _entropy
from moeits.signals.sample import parsed_sample, positions, sample_size

if TYPE_CHECKING:
    from moeits.signals.cell_sums import Grid

# A sample says too little of a pair if its cells, those of evenly filled bins, are so many for each entry.
MOST_CELLS = 8.0

# Standard deviations above independence: up to the first a pair is corrected as an independent one, from the second on
# by its own slope, which is the noisier of the two.
_INDEPENDENT, _DEPENDENT = 1.5, 5.0

# Where the slope before does not fit, the estimate is moved by the misfit, and this many of it are a standard error.
_MISFIT = 1.5

# From there on the pair's own spread is computed as well, which takes a second look at its entries.
LOOKED_AT_AGAIN = 2.5


@dataclass(frozen=True, kw_only=True)
class SampledCodes(Codes):
    """One weight at the sampled entries. `codes` are those of the sample, (n,); `counts` and `entropy` of all N."""

    sample_counts: np.ndarray
    """(B,) int64: sampled entries per bin that is occupied in the whole weight."""
    entropies: np.ndarray
    """(3,): of the sample, and on average of samples half and a quarter as large."""
    missing: float
    """How much lower the entropy of a sample is, on average, than that of all entries."""
    bases: np.ndarray
    """(2, 2 POINTS): sums over bins, of the sample and of all entries (`cell_sums`)."""
    forms: np.ndarray
    """(sums, 2 POINTS): the kernel of each of `_SUMS` times the basis that it takes."""
    curve: np.ndarray
    """(3, steps): what a pair's slope, as a share of that of independent weights, says of it (`_Kernels.curve`)."""


@dataclass(frozen=True, kw_only=True)
class SampledNMI(NMI):
    """`NMI` by a sample: `compare` estimates what it gives, `estimate` says with which standard error."""

    def encode_weight(self, weight: np.ndarray, part: str = "") -> Codes:
        from moeits.signals.binning import bin_weight

        size = self._size(weight.size)
        if size >= weight.size:
            return super().encode_weight(weight)
        codes, counts = bin_weight(weight, self.bins, positions(weight.size, size, part, self.sample_seed))
        entropy = _entropy(counts)
        if counts.size == 1:
            return Codes(codes=codes, counts=counts, entropy=entropy)
        _check_size(size, weight.size, entropy)
        return _encoded(codes, counts, entropy)

    def _size(self, entries: int) -> int:
        assert self.sample is not None
        return sample_size(parsed_sample(self.sample), entries)

    def encode(self, parts: Mapping[str, np.ndarray]) -> Codes:
        ((name, weight),) = parts.items()
        return self.encode_weight(weight, name)

    def compare_two(self, a: Codes, b: Codes) -> float:
        return float(self.estimate([a], [b])[0, 0, 0])

    def compare(self, rows: Sequence[Codes], columns: Sequence[Codes]) -> np.ndarray:
        return self.estimate(rows, columns)[0]

    def estimate(self, rows: Sequence[Codes], columns: Sequence[Codes]) -> np.ndarray:
        """(2, rows, columns): estimates of NMI, in [0, 1], and their standard errors."""
        return np.stack([self._of_row(row, columns) for row in rows], 1)

    def _of_row(self, row: Codes, columns: Sequence[Codes]) -> np.ndarray:
        if not isinstance(row, SampledCodes):
            exact = super().compare_two
            return np.array([[exact(row, column), 0.0] for column in columns]).T
        result = np.zeros((2, len(columns)))
        known = [at for at, column in enumerate(columns) if _comparable(row, column)]
        if known:
            result[:, known] = _estimates(row, [columns[at] for at in known])  # type: ignore[misc]
        return result

    def memory(self, entries: int, itemsize: int) -> Memory:
        from moeits.signals.cell_sums import POINTS

        exact = super().memory(entries, itemsize)
        size = self._size(entries)
        if size >= entries:
            return exact
        vectors = 8 * (2 * POINTS * (2 + len(_SUMS)) + 3 * _STEPS)
        # While an expert is encoded: the positions, and what is read there; bins by Chebyshev points.
        return Memory(
            encoded=2 * size + vectors, encoding=exact.encoding + 16 * size + (6 << 20), comparing=exact.comparing
        )


def _comparable(a: Codes, b: Codes) -> bool:
    """Whether two weights share anything at all: not so if one is constant. Raises ShapeMismatch."""
    if a.codes.size != b.codes.size or a.counts.sum() != b.counts.sum():
        raise ShapeMismatch(f"Weights of {a.counts.sum()} and {b.counts.sum()} entries cannot be compared.")
    return isinstance(b, SampledCodes) and min(a.counts.size, b.counts.size) > 1


def _check_size(size: int, entries: int, entropy: float) -> None:
    """Raises SettingError if the joint histogram of two such weights has more cells than a sample can fill."""
    fewest = int(exp(2 * entropy) / MOST_CELLS) + 1
    if size < fewest:
        raise SettingError(
            f"a sample of {size} of {entries} entries is too small for joint histograms of {exp(entropy):.0f} x "
            f"{exp(entropy):.0f} evenly filled bins; give --sample {fewest} or more, or fewer --bins"
        )


# ---------------------------------------------------------------------------------------- encoding


def _encoded(codes: np.ndarray, counts: np.ndarray, entropy: float) -> SampledCodes:
    from moeits.signals.cell_sums import POINTS
    from moeits.signals.sample_counts import count_sums

    n = codes.size
    sample_counts = np.bincount(codes, minlength=counts.size)
    sums = count_sums(sample_counts)
    kernels = _kernels(n, int(counts.sum()))
    seen = sample_counts[sample_counts > 0]
    bases = np.zeros((2, 2, POINTS))
    for basis, bins in zip(bases, (seen, counts), strict=True):
        basis[0] = kernels.grid.spread(bins, np.ones(bins.size))
        basis[1] = kernels.grid.spread(bins, 1 - 1 / bins)
    forms = np.einsum("qbij,qbj->qbi", kernels.forms, bases[kernels.basis_of])
    return SampledCodes(
        codes=codes,
        counts=counts,
        entropy=entropy,
        sample_counts=sample_counts,
        entropies=_entropies(sums, n),
        missing=float(bases[1, 0] @ kernels.missing),
        bases=bases.reshape(2, -1),
        forms=forms.reshape(len(_SUMS), -1),
        curve=kernels.curve(bases[1, 0]),
    )


def _entropies(sums: np.ndarray, n: int) -> np.ndarray:
    """(..., 3): plug-in entropies of samples of n, n / 2 and n / 4 entries from sums (..., 3) over their histogram."""
    sizes = n / np.array([1.0, 2.0, 4.0])
    return np.log(sizes) - sums / sizes


# Sums over the cells of two independent weights: of the sample, but for the last three.
_SUMS = (
    "excess",
    "excess of half",
    "excess of a quarter",
    "ff",
    "fg",
    "gg",
    "squares",
    "excess of all",
    "ff of all",
    "shared",
)

# Slopes at which the curve of an encoded weight is kept: -ln of the share of the slope under independence.
_FIRST, _STEP, _STEPS = -1.0, 0.05, 260
_LEVELS = np.arange(-4.0, 16.0, 0.25)


@dataclass(frozen=True, kw_only=True)
class _Kernels:
    """What depends on the numbers of entries only, sampled and all."""

    grid: "Grid"
    forms: np.ndarray
    basis_of: np.ndarray
    missing: np.ndarray
    levels: np.ndarray
    cells: np.ndarray
    """(levels, POINTS, POINTS): excess of cells in samples of other sizes."""
    bins: np.ndarray
    """(levels, POINTS): of bins."""
    n: int
    octaves: float

    def curve(self, basis: np.ndarray) -> np.ndarray:
        """How the excess of conditional entropies falls with the size of the sample, for two weights of one histogram.

        (3, steps), by the share that the slope has of that of independent weights, -ln of which has equal steps: the
        share of the whole fall per share of the slope; the derivative of that share; the share of the slope before, of
        samples half as large, per share of the slope.
        """
        sizes = self.n * 2.0**self.levels
        excess = np.maximum((np.einsum("lij,i,j->l", self.cells, basis, basis) - self.bins @ basis) / sizes, 1e-300)

        def at(level: np.ndarray | float) -> np.ndarray:
            return np.exp(np.interp(level, self.levels, np.log(excess)))

        slope, before = at(_LEVELS - 1) - at(_LEVELS), at(_LEVELS - 2) - at(_LEVELS - 1)
        share = (at(_LEVELS) - at(_LEVELS + self.octaves)) / (at(0.0) - at(self.octaves))
        steep = np.log(np.maximum(slope / (at(-1.0) - at(0.0)), 1e-300))
        wanted = _FIRST + _STEP * np.arange(_STEPS)
        order = np.argsort(-steep)
        per_slope = np.interp(wanted, -steep[order], np.log(np.maximum(share / np.exp(steep), 1e-300))[order])
        shares = np.exp(per_slope - wanted)
        derivative = np.gradient(shares, np.exp(-wanted))
        ratio = (before / (at(-2.0) - at(-1.0))) / np.exp(steep)
        before_per_slope = np.interp(wanted, -steep[order], ratio[order])
        return np.stack([np.exp(per_slope), derivative, before_per_slope])


@lru_cache(maxsize=8)
def _kernels(n: int, entries: int) -> _Kernels:
    from moeits.signals.cell_sums import POINTS, Cells, Grid

    grid = Grid(entries)
    pairs = n / max(n - 1, 1), entries / max(entries - 1, 1)

    def form(
        function: Callable[[np.ndarray], np.ndarray], size: int, shift: float = 0.0, pairs: float | None = None
    ) -> np.ndarray:
        """For the basis of all bins and that of 1 - 1 / count: the second takes the correction of the moment."""
        both = np.zeros((2, POINTS, POINTS))
        both[0] = grid.of_cells(function, shift - log(size))
        if pairs is not None:
            curvature = grid.of_cells(Cells.curvature, shift - log(size))
            both[0] -= curvature
            both[1] = curvature * pairs
        return both

    forms = np.stack(
        [
            form(Cells.excess, n, pairs=pairs[0]),
            form(Cells.excess, n, -log(2), pairs=pairs[0]),
            form(Cells.excess, n, -log(4), pairs=pairs[0]),
            form(Cells.spread("ff"), n),
            form(Cells.spread("fg"), n),
            form(Cells.spread("gg"), n),
            form(Cells.squares, n),
            form(Cells.excess, entries, pairs=pairs[1]),
            form(Cells.spread("ff"), entries),
            form(Cells.shared(n / entries), entries),
        ]
    )
    octaves = float(np.log2(entries / n))
    levels = np.arange(_LEVELS[0] - 2, _LEVELS[-1] + octaves + 0.25, 0.25)
    scales = np.log(n / entries) + levels * log(2)
    return _Kernels(
        grid=grid,
        forms=forms,
        basis_of=np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1]),
        missing=Cells.excess(grid.points + log(n / entries)) / n - Cells.excess(grid.points) / entries,
        levels=levels,
        cells=np.stack([grid.of_cells(Cells.excess, scale - log(entries)) for scale in scales]),
        bins=np.stack([Cells.excess(grid.points + scale) for scale in scales]),
        n=n,
        octaves=octaves,
    )


# ---------------------------------------------------------------------------------------- comparing


def _estimates(a: SampledCodes, columns: Sequence[SampledCodes]) -> np.ndarray:
    """(2, columns): NMI and standard error of a weight with each of some others."""
    from moeits.signals.cell_sums import bilinear
    from moeits.signals.sample_counts import joint_sums

    n, entries = a.codes.size, int(a.counts.sum())
    sums = np.array([joint_sums(a.codes, b.codes, a.counts.size, b.counts.size) for b in columns])
    under = np.array([bilinear(a.bases, a.forms, b.bases, b.forms, _kernels(n, entries).basis_of) for b in columns])
    excess, half, quarter, ff, fg, gg, squares, all_excess, all_ff, shared = under.T
    missing = np.array([(a.missing, b.missing) for b in columns]).T
    marginal = np.array([(a.entropies, b.entropies) for b in columns]).transpose(1, 2, 0)
    joint = _entropies(sums, n).T
    information = marginal[:, 0].sum(0) - joint[0]

    # What the mean conditional entropy is, and by how much it falls from a half to all of the sample, and before.
    conditional = joint - marginal.sum(0) / 2
    slope, before = conditional[0] - conditional[1], conditional[1] - conditional[2]
    expected = np.array([2 * half - excess, 4 * quarter - 2 * half]) / n + np.diff(marginal, axis=1).sum(0) / 2
    steepness = np.maximum(slope / expected[0], 0.0)
    per_slope, derivative, before_per_slope = _on_curves(a, columns, steepness)
    above = np.maximum(information - excess / n, 0.0) / np.sqrt(ff) * n
    own = _smooth_step((above - _INDEPENDENT) / (_DEPENDENT - _INDEPENDENT))
    misfit = before_per_slope * steepness - before / expected[1]
    misfit -= 2 * np.sqrt(np.maximum(ff - 4 * fg + 4 * gg, 0.0)) / n / expected[0]
    misfit = own * np.clip(misfit, 0.0, 1.0)
    share = 1 + own * (per_slope * steepness - 1) + misfit

    falls = excess / n - all_excess / entries + missing.sum(0) / 2
    whole = marginal[:, 0] + missing
    scale = np.sqrt(whole[0] * whole[1])
    nmi = np.clip((whole.sum(0) / 2 - conditional[0] - share * falls) / scale, 0.0, 1.0)

    # In units of cells: (1 + k) f - 2 k g is what an entry moves, k by the slope.
    k = own * derivative * falls / expected[0]
    by_chance = ((1 + k) ** 2 * ff - 4 * (1 + k) * k * fg + 4 * k**2 * gg) / n**2
    by_chance += all_ff / entries**2 - 2 * shared / (n * entries)
    variance = np.clip(share, 0.0, 1.0) * np.maximum(by_chance, 0.0) + (_MISFIT * misfit * falls) ** 2
    # On the way from one correction to the other it is not known which of them is right.
    variance += 2 * own * (1 - own) * ((per_slope * steepness - 1) * falls) ** 2
    for at in map(int, np.flatnonzero(above > LOOKED_AT_AGAIN)):
        variance[at] += _own_variance(a, columns[at], nmi[at], share[at] * (squares[at] - excess[at] ** 2 / n))
    return np.stack([nmi, np.sqrt(variance) / scale])


def _smooth_step(at: np.ndarray) -> np.ndarray:
    at = np.clip(at, 0.0, 1.0)
    return at * at * (3 - 2 * at)


def _on_curves(a: SampledCodes, columns: Sequence[SampledCodes], steepness: np.ndarray) -> tuple[np.ndarray, ...]:
    at = (-np.log(np.maximum(steepness, 1e-12)) - _FIRST) / _STEP
    at = np.clip(at, 0, _STEPS - 1.001)
    lower = at.astype(np.int64)
    upper_share = at - lower
    around = np.array([b.curve[:, k : k + 2] for b, k in zip(columns, lower.tolist(), strict=True)])
    below, above = (a.curve[:, lower] + around[:, :, 0].T) / 2, (a.curve[:, lower + 1] + around[:, :, 1].T) / 2
    return tuple(below * (1 - upper_share) + above * upper_share)


def _own_variance(a: SampledCodes, b: SampledCodes, nmi: float, under_independence: float) -> float:
    """Of the information of a dependent pair, to first order, less what undersampling alone would show."""
    from moeits.signals.sample_counts import pointwise_variance

    n, entries = a.codes.size, int(a.counts.sum())
    of_a, of_b = (np.log(np.maximum(each.sample_counts, 1) / n) for each in (a, b))
    ratio = np.sqrt(a.entropies[0] / b.entropies[0])
    variance = pointwise_variance(a.codes, b.codes, (of_a, of_b), (nmi / 2 / ratio, nmi / 2 * ratio))
    return max(variance - under_independence / n, 0.0) * (1 / n - 1 / entries)
