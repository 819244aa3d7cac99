"""`python -m experiments.sample_coverage [--rows R] [--columns C] [--pairs P] [--samples SHARE,SHARE]`: how well scores
from a sample, and their standard errors, meet the exact ones.

For each kind of pair: the mean exact NMI, and for each sample the mean of estimate minus exact, the standard deviation
of that, the mean stated standard error, and how many of the 95 % intervals hold the exact value. Weights are bfloat16.
Pairs of one kind are drawn anew, each is sampled once. About a second a pair of 512 x 2048.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from math import sqrt

import ml_dtypes
import numpy as np

from benchmarks.measuring import table
from moeits.signals.nmi import NMI
from moeits.signals.sampled_nmi import SampledNMI

Pair = tuple[np.ndarray, np.ndarray]
Draw = Callable[[], np.ndarray]


def kinds(rng: np.random.Generator, shape: tuple[int, int]) -> dict[str, Callable[[], Pair]]:
    """Name -> a pair of weights of that kind."""

    def normal() -> np.ndarray:
        return rng.standard_normal(shape)

    def student(freedom: int) -> Draw:
        return lambda: rng.standard_t(freedom, shape)

    def noisy(share: float, draw: Draw = normal) -> Callable[[], Pair]:
        def pair() -> Pair:
            one = draw()
            return one, share * one + sqrt(1 - share**2) * draw()

        return pair

    def copy() -> Pair:
        one = normal()
        return one, one

    def partly(share: float) -> Callable[[], Pair]:
        def pair() -> Pair:
            one = normal()
            return one, np.where(rng.random(shape) < share, one, normal())

        return pair

    def rows() -> Pair:
        scales = np.exp(0.3 * rng.standard_normal((shape[0], 1)))
        return scales * normal(), scales * normal()

    return {
        "independent, Gaussian": noisy(0),
        "independent, Student-t(8)": noisy(0, student(8)),
        "independent, Student-t(4)": noisy(0, student(4)),
        **{f"noisy copy, correlation {share}": noisy(share) for share in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 0.95, 0.999)},
        "noisy copy, 0.5, Student-t(4)": noisy(0.5, student(4)),
        "noisy copy, 0.9, Student-t(4)": noisy(0.9, student(4)),
        "copy": copy,
        "copy of 3 % of the entries": partly(0.03),
        "copy of 30 % of the entries": partly(0.3),
        "copy of 80 % of the entries": partly(0.8),
        "rows of shared scales": rows,
    }


def met(make: Callable[[], Pair], samples: Sequence[str], pairs: int) -> Iterator[np.ndarray]:
    """For each pair: the exact NMI, then estimate and standard error of each sample."""
    exact = NMI()
    for seed in range(pairs):
        one, other = (weight.astype(np.float32).astype(ml_dtypes.bfloat16) for weight in make())
        known = [exact.compare_two(exact.encode_weight(one), exact.encode_weight(other))]
        for sample in samples:
            sampled = SampledNMI(sample=sample, sample_seed=seed)
            known += [*sampled.estimate([sampled.encode_weight(one)], [sampled.encode_weight(other)])[:, 0, 0]]
        yield np.array(known)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--samples", default="1/8,1/32")
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    asked = parser.parse_args(argv)
    samples, rows = asked.samples.split(","), []
    for name, make in kinds(np.random.default_rng(0), (asked.rows, asked.columns)).items():
        if asked.only not in name:
            continue
        exact, *found = np.array([*met(make, samples, asked.pairs)]).T
        cells = [name, f"{exact.mean():.5f}"]
        for estimate, error in zip(found[::2], found[1::2], strict=True):
            off = estimate - exact
            within = np.abs(off) <= 1.96 * error + 1e-12
            cells += [f"{off.mean():+.5f}", f"{off.std():.5f}", f"{error.mean():.5f}", f"{100 * within.mean():.0f}"]
        rows.append(tuple(cells))
        print(*cells, sep=" | ", flush=True)
    heads = [f"{sample}: {what}" for sample in samples for what in ("bias", "scatter", "standard error", "held, %")]
    print(table(("pair", "exact NMI", *heads), rows))


if __name__ == "__main__":
    main()
