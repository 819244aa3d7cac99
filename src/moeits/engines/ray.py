"""A Ray cluster: items go to a machine that has cores to spare, and those of a machine that is lost go to another."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import islice
from types import TracebackType
from typing import Any

from moeits.engines import Item, Result
from moeits.errors import MissingExtra, MoeitsError, SettingError

# How often an item is begun anew after its worker was lost.
_MOST_RETRIES = 5


class RayCluster:
    """The cluster at an address, or one of this machine alone that lives as long as the context.

    Each item takes `cores` of one machine. Work has to be picklable, and a pure function: an item whose worker is lost
    is done again. Raises MissingExtra without ray, SettingError where no cluster answers or none has so many cores.
    """

    def __init__(self, address: str | None = None, *, cores: int = 1) -> None:
        # What is started here tells nobody that it was.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = _ray()
        self._cores = cores
        try:
            self._ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError, OSError) as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise SettingError(f"--address {address} does not answer as a Ray cluster: {said:.200}.") from None
        most = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]
        self.workers = sum(each // cores for each in most)
        if not self.workers:
            self._ray.shutdown()
            raise SettingError(f"--threads {cores} are more than a machine of the cluster has: at most {max(most)}.")

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item], *, most: int | None = None
    ) -> Iterator[Result]:
        """The results in the order of the items; so many items at a time are under way or wait."""
        begin = self._ray.remote(num_cpus=self._cores, max_retries=_MOST_RETRIES)(_done)
        waiting, given = iter(items), self._ray.put(work)
        begun = deque(begin.remote(given, item) for item in islice(waiting, most or 2 * self.workers))
        return self._results(begin, given, waiting, begun)

    def _results(self, begin: Any, given: Any, waiting: Iterator[Item], begun: "deque[Any]") -> Iterator[Any]:
        while begun:
            yield self._result(begun.popleft())
            begun.extend(begin.remote(given, item) for item in islice(waiting, 1))

    def _result(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            # What the work itself found wrong is said as if it had been found here.
            raise (error.cause if isinstance(error.cause, MoeitsError) else error) from None
        except self._ray.exceptions.LocalRayletDiedError:
            raise SettingError(
                "The Ray node of this machine has gone, and what it ran with it; finished layers are kept. "
                "Start it, and give the same command again."
            ) from None
        except self._ray.exceptions.RayError as error:
            said = " ".join(str(error).split())
            raise SettingError(
                f"The cluster lost a layer {_MOST_RETRIES + 1} times: {said:.200}. Look at the cluster, or give "
                "each job less with --memory; finished layers are kept."
            ) from None


def _done(work: Callable[[Item], Result], item: Item) -> Result:
    return work(item)


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise MissingExtra(
            "--engine ray needs ray, which is not installed. In a clone of moeits: pip install '.[ray]'"
        ) from None
