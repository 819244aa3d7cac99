"""Scoring, pair for pair, against the naive computation, on one thread and on two."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations

import numpy as np

from benchmarks import naive
from benchmarks.measuring import in_turn, ratio, spread, table
from benchmarks.weights import COLUMNS, KINDS, ROWS, matrix
from moeits.signals.nmi import NMI, Codes

REPEATS, EXPERTS = 7, 16


def run() -> str:
    rows: list[tuple[str, ...]] = []
    for kind in KINDS:
        rng = np.random.default_rng(0)
        weights = [matrix(kind, rng) for _ in range(EXPERTS)]
        estimator = NMI()
        encoded = [estimator.encode_weight(weight) for weight in weights]
        exact = naive.nmi(weights[0], weights[1])
        difference = abs(estimator.compare_two(encoded[0], encoded[1]) - exact)
        pairs = list(combinations(encoded, 2))
        slow, one, two = in_turn(
            REPEATS,
            partial(naive.nmi, weights[0], weights[1]),
            partial(_compare_all, pairs, threads=1),
            partial(_compare_all, pairs, threads=2),
        )
        one, two = [t / len(pairs) for t in one], [t / len(pairs) for t in two]
        rows.append(
            (
                kind,
                f"{encoded[0].counts.size}",
                spread(slow, 1e-3, 0),
                spread(one, 1e-3),
                spread(two, 1e-3),
                spread(ratio(slow, one), digits=0),
                spread(ratio(slow, two), digits=0),
                spread(ratio(one, two)),
                f"{difference:.0e}",
            )
        )
    header = (
        f"{ROWS} x {COLUMNS} bf16",
        "occupied bins",
        "naive, ms",
        "1 thread, ms",
        "2 threads, ms",
        "1 thread, times",
        "2 threads, times",
        "second core, times",
        "difference",
    )
    return _pairs(header, rows) + "\n\n" + _encoding()


def _encoding() -> str:
    """What it takes to bin one weight, once per expert and projection."""
    rng = np.random.default_rng(0)
    weight, estimator, rows = matrix(KINDS[0], rng), NMI(), []
    for dtype in ("bfloat16", "float16", "float32"):
        stored = weight.astype(np.float32).astype(dtype)
        (times,) = in_turn(REPEATS, partial(estimator.encode_weight, stored))
        tracemalloc.start()
        estimator.encode_weight(stored)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        rows.append((dtype, spread(times, 1e-3), f"{most / stored.size:.1f}"))
    return (
        f"One weight of {ROWS} x {COLUMNS}, `NMI.encode_weight`; codes themselves take two bytes an entry.\n\n"
        + table(("stored as", "ms", "bytes an entry at most"), rows)
    )


def _pairs(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return (
        f"One pair of weights: `np.histogram` twice and `np.histogram2d` once (benchmarks/naive.py), beside "
        f"`NMI.compare_two` over {EXPERTS * (EXPERTS - 1) // 2} pairs of weights encoded before. "
        f"{REPEATS} repeats in turn; median (least to most).\n\n" + table(header, rows)
    )


def _compare_all(pairs: list[tuple[Codes, Codes]], threads: int) -> None:
    estimator = NMI()
    if threads == 1:
        for a, b in pairs:
            estimator.compare_two(a, b)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda pair: estimator.compare_two(*pair), pairs))
