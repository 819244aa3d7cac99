"""A Ray cluster of two nodes of this machine, in a process of its own: `python -m tests.ray_cluster`.

Prints its address. Each line that it reads costs it its second node, at once and without a farewell; it gets another
and answers with a line. It ends with its input.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Elsewhere:
    """The cluster that such a process keeps."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = self._answer()

    def lose_a_node(self) -> None:
        """Kill the second node, and wait until there is another."""
        assert self._process.stdin is not None
        self._process.stdin.write("lose\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline().strip()):
            raise RuntimeError("the process that keeps the cluster has gone")
        return line


@contextmanager
def cluster_elsewhere() -> Iterator[Elsewhere]:
    """A cluster in a process of its own, which this one may fork beside."""
    command = [sys.executable, "-m", "tests.ray_cluster"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Elsewhere(process)
        process.communicate()


def main() -> None:
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's name; by default 15, which waits for everybody else
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        second = cluster.add_node(num_cpus=1)
        print("another", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
