"""Threads of this process. The kernels release the GIL, so each keeps a core busy."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType

from moeits.engines import Item, Result

# Items per thread that are handed over before their turn: enough that no thread waits for the one that collects.
_AHEAD = 64


class Threads:
    """`workers` threads; by default one for each core that this process may use.

    Leaving the context, be it by Ctrl-C, waits for what the threads are at and drops the rest.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or _cores()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="moeits")

    def __enter__(self) -> "Threads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item], *, most: int | None = None
    ) -> Iterator[Result]:
        """The results in the order of the items; so many items at a time are under way or wait."""
        waiting = iter(items)
        ahead = _AHEAD * self.workers if most is None else most
        begun = deque(self._pool.submit(work, item) for item in islice(waiting, ahead))
        return self._results(work, waiting, begun)

    def _results(
        self, work: Callable[[Item], Result], waiting: Iterator[Item], begun: "deque[Future[Result]]"
    ) -> Iterator[Result]:
        try:
            while begun:
                # Not kept in a variable: what was yielded is the caller's alone.
                yield begun.popleft().result()
                begun.extend(self._pool.submit(work, item) for item in islice(waiting, 1))
        finally:
            for future in begun:
                future.cancel()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
