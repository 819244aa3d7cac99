"""kill -9 at any moment: never half a result, the source untouched, the next run succeeds, and the same bytes at last.

    python -m tests.kills --kills 200 [--seed 0] [--verbs score,prune]

Half of the kills fall just before a change of the file system that Python reports (a file opened for writing, a rename,
a folder, a removal), spread over all changes of the verb; the others at random moments of its run. Each is followed by
the checks and by the same command again. Prints one Markdown table, and exits with 1 if a promise was broken.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moeits
from tests.healing_toys import texts, write_rows, write_tokenizer
from tests.hub_server import reach
from tests.toys import make_toy

Files = dict[str, str]
"""Path below a folder -> SHA-256 of the file."""

CHANGES = {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}
# What says how long something took differs from run to run; everything else is the same to the byte.
DURATIONS = {"ledger.json", "healing.json"}
HEALING: dict[str, Any] = {
    **{"recipe": "small", "rank": 2, "batch_size": 2, "steps": 4, "evaluate_every": 2, "save_every": 2},
    **{"sequence_length": 16, "packing": False, "learning_rate": 1e-2},
}
WATCHED: dict[str, Any] = {"device": "cpu", "tokens": 512, "held_out": 256, "window": 16}


@dataclass(frozen=True)
class Verb:
    """A stage run from `given`, which holds all inputs, to an output in `work`."""

    name: str
    run: Callable[[Path, Path, bool], Any]
    """Given, work, and whether it is run again after a kill."""
    output: str
    before: str | None = None
    """What lies at the output beforehand, of what is given."""
    unsteady: frozenset[str] = frozenset(DURATIONS)
    grows: bool = False
    """Whether the output is a folder that fills up file by file, each of them whole."""
    streams: bool = False
    """Whether it reads its source over the network."""


def _heal(given: Path, work: Path, again: bool) -> None:
    resume = again and (work / "out.healing").is_dir()
    moeits.heal(given / "pruned", data=given / "texts.jsonl", output=work / "out", resume=resume, **HEALING)


VERBS = (
    Verb("score", lambda g, w, _: moeits.score(g / "toy", output=w / "e.safetensors"), "e.safetensors"),
    Verb("plan", lambda g, w, _: moeits.plan(g / "e.safetensors", tau=0.5, output=w / "plan.json"), "plan.json"),
    Verb("prune", lambda g, w, _: moeits.prune(g / "toy", plan=g / "plan.json", output=w / "out"), "out"),
    Verb(
        "prune --overwrite",
        lambda g, w, _: moeits.prune(g / "toy", plan=g / "plan.json", output=w / "out", overwrite=True),
        "out",
        before="other",
    ),
    Verb("simplify", lambda g, w, _: moeits.simplify(g / "toy", tau=0.5, output=w / "out"), "out"),
    Verb("heal", _heal, "out", unsteady=frozenset({*DURATIONS, "README.md"})),
    Verb(
        "calibrate", lambda g, w, _: moeits.calibrate(g / "toy", output=w / "s.safetensors", **WATCHED), "s.safetensors"
    ),
    Verb("refit", lambda g, w, _: moeits.refit(g / "pruned", parent=g / "toy", output=w / "out", **WATCHED), "out"),
    Verb(
        "score --stream",
        lambda _, w, __: moeits.score("org/toy", stream=True, output=w / "e.safetensors"),
        "e.safetensors",
        streams=True,
    ),
    Verb(
        "prune --stream",
        lambda g, w, _: moeits.prune("org/toy", plan=g / "plan.json", output=w / "out", stream=True),
        "out",
        streams=True,
    ),
    Verb("sweep", lambda g, w, _: moeits.sweep(g / "toy", tau="-1:2:1", output=w / "run"), "run", grows=True),
)


def prepare(given: Path) -> None:
    """All that the verbs read. Kernels are compiled and torch is imported here, so that every child has them."""
    toy = make_toy(given / "toy", dtype="float32", layers=2)
    write_tokenizer(toy)
    evidence = moeits.score(toy, output=given / "e.safetensors")
    moeits.prune(toy, plan=moeits.plan(evidence, tau=0.5, output=given / "plan.json"), output=given / "pruned")
    moeits.prune(toy, plan=moeits.plan(evidence, experts_per_layer=5), output=given / "other")
    write_rows(given / "texts.jsonl", texts())


@contextmanager
def elsewhere(folder: Path) -> Iterator[str]:
    """The address of a hub that serves a folder, in a process of its own: this one forks."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.hub_server", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.communicate()


def files_of(path: Path) -> Files:
    """Every file at or below a path, hidden ones too."""
    paths = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path.parent)): hashlib.sha256(file.read_bytes()).hexdigest() for file in paths}


# ------------------------------------------------------------------------------------------------ one process, killed


def in_child(work: Callable[[], Any], *, counted: Path | None = None, killed_at: int = 0, after: float = 0.0) -> str:
    """Do the work in a forked process: "done", "killed", or what it died of.

    Killed before its `killed_at`-th change below the folder `counted`, or after so many seconds. Changes are counted
    into the file beside that folder.
    """
    sys.stdout.flush()
    errors = tempfile.NamedTemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115 - the child writes to it
    child = os.fork()
    if child == 0:
        code = 3
        try:
            _count_changes(counted, killed_at)
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=errors)
            errors.flush()
        finally:
            os._exit(code)
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with errors:
        if os.WIFSIGNALED(status):
            return "killed"
        errors.seek(0)
        return "done" if os.waitstatus_to_exitcode(status) == 0 else errors.read().strip().splitlines()[-1]


def _count_changes(folder: Path | None, killed_at: int) -> None:
    """Count every change below a folder, or die before the one of that number. For a child: a hook stays."""
    if folder is None:
        return
    counter = os.open(folder.with_name("changes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    beginning, seen = str(folder), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            changing = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changing = event in CHANGES
        if changing and isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(beginning):
            seen += 1
            os.write(counter, b".")
            if seen == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


# ------------------------------------------------------------------------------------------------ what must hold


@dataclass
class Tally:
    """What became of the kills of one verb."""

    changes: int = 0
    kills: int = 0
    late: int = 0
    """Kills that came when the work was done; they prove nothing and are not among the kills."""
    broken: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def fault(self, kind: str, what: str) -> None:
        self.broken[kind] += 1
        self.examples.append(f"{kind}: {what}")


KINDS = ("half a result", "result gone", "source changed", "rerun failed", "other bytes", "leftovers")


class Killing:
    """Kills of one verb in a folder of its own."""

    def __init__(self, verb: Verb, given: Path, scratch: Path) -> None:
        self.verb, self.given, self.work = verb, given, scratch / "work"
        self.tally = Tally()
        self.sources = files_of(given)
        self.seconds = self._whole_run()

    def _whole_run(self) -> float:
        """Run it once to the end: what it gives, how many changes it makes, how long it takes."""
        self.begin()
        (self.work.with_name("changes")).unlink(missing_ok=True)
        if (said := in_child(self.once, counted=self.work)) != "done":
            raise RuntimeError(f"{self.verb.name} fails without a kill: {said}")
        self.tally.changes = self.work.with_name("changes").stat().st_size
        self.result, self.all_files = self.output(), set(files_of(self.work))
        self.begin()
        began = time.perf_counter()
        in_child(self.once)
        return time.perf_counter() - began

    def begin(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        if self.verb.before:
            shutil.copytree(self.given / self.verb.before, self.work / self.verb.output)
        self.before = self.output()

    def once(self) -> None:
        self.verb.run(self.given, self.work, False)

    def _again(self) -> None:
        self.verb.run(self.given, self.work, True)

    def output(self) -> Files:
        path = self.work / self.verb.output
        return files_of(path) if path.exists() else {}

    def _steady(self, files: Files) -> Files:
        return {name: digest for name, digest in files.items() if Path(name).name not in self.verb.unsteady}

    def kill(self, *, at: int = 0, after: float = 0.0) -> None:
        """Kill at a change, or after so many seconds; look at what is left; run again; look again."""
        self.begin()
        when = f"{self.verb.name}, " + (f"change {at}" if at else f"{1000 * after:.0f} ms")
        if in_child(self.once, counted=self.work if at else None, killed_at=at, after=after) != "killed":
            self.tally.late += 1
            return
        self.tally.kills += 1
        self._check_what_is_left(when)
        complete = self._steady(self.output()) == self._steady(self.result)
        said = in_child(self._again)
        # What was complete before the kill is not replaced without --overwrite.
        if said != "done" and not (complete and " exists. " in said):
            self.tally.fault("rerun failed", f"{when}: {said}")
            return
        known = {name: digest for name, digest in self.output().items() if f"work/{name}" in self.all_files}
        if self._steady(known) != self._steady(self.result):
            self.tally.fault("other bytes", when)
        if files_of(self.given) != self.sources:
            self.tally.fault("source changed", when)
        if leftovers := set(files_of(self.work)) - self.all_files:
            self.tally.fault("leftovers", f"{when}: {', '.join(sorted(leftovers)[:3])}")

    def _check_what_is_left(self, when: str) -> None:
        left, whole = self._steady(self.output()), self._steady(self.result)
        if self.verb.grows:
            # What lists the points grows with them; each file that has its name is whole.
            left = {name: digest for name, digest in left.items() if _has_its_name(name)}
            if not left.items() <= whole.items():
                self.tally.fault("half a result", f"{when}: {sorted(dict(left.items() - whole.items()))}")
        elif self.verb.before and not left:
            self.tally.fault("result gone", when)
        elif left and left not in (whole, self._steady(self.before)):
            self.tally.fault("half a result", when)


def _has_its_name(file: str) -> bool:
    """Whether a file of a run is more than work under way, and not the list of the run's points."""
    parts = Path(file).parts
    return parts[-1] != "sweep.json" and not any(part.startswith(".") or ".partial" in part for part in parts)


def moments(killing: Killing, kills: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """When to kill: half at changes of the file system, evenly spread over them, half at random moments."""
    at_changes = min(killing.tally.changes, (kills + 1) // 2)
    for number in range(at_changes):
        yield {"at": 1 + number * killing.tally.changes // at_changes}
    for _ in range(kills - at_changes):
        yield {"after": rng.uniform(0.001, killing.seconds)}


def run(kills: int, *, seed: int = 0, verbs: tuple[Verb, ...] = VERBS) -> dict[str, Tally]:
    """That many kills, shared out evenly among the verbs."""
    rng, tallies = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        given = Path(folder) / "given"
        prepare(given)
        if any(verb.streams for verb in verbs):
            reach(servers.enter_context(elsewhere(given / "toy")), Path(folder) / "cache")
        for number, verb in enumerate(verbs):
            share = kills // len(verbs) + (number < kills % len(verbs))
            scratch = Path(folder) / verb.output / str(number)
            scratch.mkdir(parents=True)
            killing = Killing(verb, given, scratch)
            for moment in moments(killing, share, rng):
                killing.kill(**moment)
            while killing.tally.kills < share:  # those that came too late
                killing.kill(after=rng.uniform(0.001, killing.seconds))
            tallies[verb.name] = killing.tally
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """Markdown: a row per verb, a column per broken promise."""
    total = Tally(kills=sum(t.kills for t in tallies.values()), late=sum(t.late for t in tallies.values()))
    total.broken = sum((t.broken for t in tallies.values()), Counter())
    rows = [f"| verb | kills | {' | '.join(KINDS)} |", "| --- |" + " ---: |" * (1 + len(KINDS))]
    for name, tally in {**tallies, "together": total}.items():
        rows.append(f"| {name} | {tally.kills} | {' | '.join(str(tally.broken[kind]) for kind in KINDS)} |")
    return "\n".join(rows)


def told(tallies: dict[str, Tally]) -> int:
    """Print the table and what was broken; the exit code."""
    print(table(tallies))
    examples = [example for tally in tallies.values() for example in tally.examples]
    print("\n".join(examples))
    return 1 if examples else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", help="only these, by commas")
    asked = parser.parse_args(argv)
    names = asked.verbs.split(",") if asked.verbs else [verb.name for verb in VERBS]
    tallies = run(asked.kills, seed=asked.seed, verbs=tuple(verb for verb in VERBS if verb.name in names))
    return told(tallies)


if __name__ == "__main__":
    sys.exit(main())
