"""kill -9 on a Ray cluster of two nodes: of a worker, of a node, or of the program that asked; the same bytes at last.

    python -m tests.ray_kills --kills 200 [--seed 0]

A third of the kills each, at random moments of the run. A run that lost a worker or a node goes on by itself; one that
was killed is given again. Prints one Markdown table, and exits with 1 if a promise was broken. Needs ray.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import moeits
from tests.kills import Killing, Tally, Verb, in_child, told
from tests.ray_cluster import Elsewhere, cluster_elsewhere
from tests.toys import make_toy

LAYERS = 6
WORKERS = (b"ray::_done", b"ray::IDLE")


def kill_a_worker(rng: random.Random) -> bool:
    """Whether there was one to kill: a process in which a cluster of this machine scores, or waits for a layer."""
    workers = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(WORKERS):
                workers.append(int(entry.name))
    if not workers:
        return False
    with suppress(ProcessLookupError):
        os.kill(rng.choice(sorted(workers)), signal.SIGKILL)
        return True
    return False


def survives(work: Callable[[], object], kill: Callable[[], bool], after: float) -> tuple[str, bool]:
    """How work in a process of its own ended, and whether something was killed beside it while it ran."""
    killed, ended = False, threading.Event()

    def strike() -> None:
        nonlocal killed
        time.sleep(after)
        while not ended.is_set() and not killed:
            killed = kill()
            time.sleep(0.01)

    striking = threading.Thread(target=strike)
    striking.start()
    said = in_child(work)
    ended.set()
    striking.join()
    return said, killed


class Beside:
    """Kills of something that the run of a verb stands on."""

    def __init__(self, killing: Killing, kill: Callable[[], bool], rng: random.Random) -> None:
        self.killing, self.tally, self._kill, self._rng = killing, Tally(), kill, rng

    def once(self) -> None:
        self.killing.begin()
        after = self._rng.uniform(0.001, self.killing.seconds)
        said, killed = survives(self.killing.once, self._kill, after)
        if not killed:
            self.tally.late += 1
            return
        self.tally.kills += 1
        if said != "done":
            self.tally.fault("rerun failed", f"{1000 * after:.0f} ms: {said}")
        elif self.killing.output() != self.killing.result:
            self.tally.fault("other bytes", f"{1000 * after:.0f} ms")


def run(kills: int, *, seed: int = 0) -> dict[str, Tally]:
    """That many kills, a third of each kind."""
    rng, tallies = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as folder, cluster_elsewhere() as cluster:
        given, scratch = Path(folder) / "given", Path(folder) / "scratch"
        make_toy(given / "toy", layers=LAYERS)
        scratch.mkdir()
        killing = Killing(_score(cluster), given, scratch)

        def lose_a_node() -> bool:
            cluster.lose_a_node()
            return True

        beside = {
            "a worker": Beside(killing, lambda: kill_a_worker(rng), rng),
            "a node": Beside(killing, lose_a_node, rng),
        }
        shares = [kills // 3 + (number < kills % 3) for number in range(3)]
        for share, (name, each) in zip(shares, beside.items(), strict=False):
            while each.tally.kills < share:
                each.once()
            tallies[name] = each.tally
        while killing.tally.kills < shares[2]:
            killing.kill(after=rng.uniform(0.001, killing.seconds))
        tallies["the program that asked"] = killing.tally
    return tallies


def _score(cluster: Elsewhere) -> Verb:
    def score(given: Path, work: Path, _: bool) -> None:
        moeits.score(given / "toy", output=work / "e.safetensors", engine="ray", address=cluster.address)

    return Verb("score --engine ray", score, "e.safetensors")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    return told(run(asked.kills, seed=asked.seed))


if __name__ == "__main__":
    sys.exit(main())
