"""The pair kernel against a plain C loop, and what it costs against bins, entries and threads."""

import ctypes
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import in_turn, ratio, spread, table
from benchmarks.weights import COLUMNS, KINDS, ROWS, matrix
from moeits.signals.joint_counts import count_pairs
from moeits.signals.nmi import NMI, Codes

REPEATS, JOBS = 15, 4
C_LOOP = """
#include <stdint.h>
#include <stddef.h>
void count(const uint16_t *a, const uint16_t *b, size_t n, uint32_t bins, uint32_t *counts) {
    for (size_t i = 0; i < n; i++) counts[a[i] * bins + b[i]]++;
}
"""


def run() -> str:
    return f"{_against_c()}\n\n{_cost_table()}"


def _against_c() -> str:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        c_loop = compiled(Path(scratch))
        for kind in KINDS:
            rng = np.random.default_rng(0)
            a, b = (NMI().encode_weight(matrix(kind, rng)) for _ in range(2))
            cells = a.counts.size * b.counts.size
            wide, table_, wrapped = np.zeros(cells, np.uint32), np.zeros(cells, np.uint8), _wrapped(a.codes.size)
            plain, ours, whole = in_turn(
                REPEATS,
                partial(c_loop, pointer(a.codes), pointer(b.codes), a.codes.size, b.counts.size, pointer(wide)),
                partial(_ours, a, b, table_, wrapped),
                partial(NMI().compare_two, a, b),
            )
            rows.append((kind, *(spread(t, 1e-3) for t in (plain, ours, whole)), spread(ratio(ours, plain))))
    header = ("", "C loop, ms", "kernel, ms", "kernel and entropy, ms", "kernel / C loop")
    return (
        "The pair kernel (`count_pairs`) beside `counts[a * bins + b]++` in C, gcc -O3, uint32 counts, same codes. "
        f"{REPEATS} repeats in turn.\n\n" + table(header, rows)
    )


def _cost_table() -> str:
    rows = []
    rng = np.random.default_rng(0)
    for entries in (ROWS * COLUMNS // 16, ROWS * COLUMNS, 4 * ROWS * COLUMNS):
        for bins in (64, 256, 512, 1024, 4096):
            a, b = (_normal_codes(rng, entries, bins) for _ in range(2))
            one, two = in_turn(5, partial(_all, a, b, JOBS, threads=1), partial(_all, a, b, JOBS, threads=2))
            scale = entries * JOBS / 1e9
            rows.append((f"{entries:,}", str(bins), spread(one, scale), spread(two, scale), spread(ratio(one, two))))
    header = ("entries", "bins", "ns per entry pair, 1 thread", "2 threads", "second core, times")
    return "`NMI.compare_two`, normally distributed codes, entropy included.\n\n" + table(header, rows)


def _ours(a: Codes, b: Codes, table_: np.ndarray, wrapped: np.ndarray) -> None:
    table_.fill(0)
    count_pairs(a.codes, b.codes, b.counts.size, table_, wrapped)


def compiled(folder: Path) -> Any:
    (folder / "loop.c").write_text(C_LOOP)
    subprocess.run(
        ["gcc", "-O3", "-shared", "-fPIC", "-o", str(folder / "loop.so"), str(folder / "loop.c")], check=True
    )
    function = ctypes.CDLL(str(folder / "loop.so")).count
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p]
    return function


def pointer(array: np.ndarray) -> int:
    return array.ctypes.data


def _wrapped(entries: int) -> np.ndarray:
    return np.zeros(entries // 256 + 1, np.uint32)


def _normal_codes(rng: np.random.Generator, entries: int, bins: int) -> Codes:
    """Codes spread over the bins like normal weights over theirs."""
    raw = np.clip((rng.standard_normal(entries) / 8 + 0.5) * bins, 0, bins - 1).astype(np.int64)
    occupied, codes, counts = np.unique(raw, return_inverse=True, return_counts=True)
    del occupied
    return Codes(codes=codes.astype(np.uint16), counts=counts, entropy=1.0)


def _all(a: Codes, b: Codes, jobs: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: NMI().compare_two(a, b), range(jobs)))
