"""How things are timed and told: medians with their spread, on a named machine."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path


def machine() -> str:
    """The machine and the versions, in one sentence each."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "safetensors"))
    return (
        f"Machine: {model}, {len(os.sched_getaffinity(0))} cores (virtual, shared), {memory / 2**20:.0f} GiB, "
        f"{platform.system()} {platform.release()}.\n"
        f"Versions: Python {sys.version.split()[0]}, {packages}."
    )


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(
    repeats: int, *works: Callable[[], object], between: Callable[[], object] = lambda: None
) -> list[list[float]]:
    """Wall seconds of several works, called in turn so that a drift of the machine meets them all.

    `between` is called before each, not timed.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for record, work in zip(times, works, strict=True):
            between()
            record.append(seconds(work))
    return times


def spread(times: Iterable[float], unit: float = 1.0, digits: int = 2) -> str:
    """Median and, in brackets, minimum and maximum."""
    values = [value / unit for value in times]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratio(slow: Iterable[float], fast: Iterable[float], scale: float = 1.0) -> list[float]:
    """How many times faster, run by run."""
    return [scale * a / b for a, b in zip(slow, fast, strict=True)]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("| --- " + "| ---: " * (lines[0].count("|") - 2) + "|")
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
