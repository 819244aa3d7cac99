"""Wrong inputs by the thousand: only MoeitsError, or exit code 2 with one sentence, no long call, memory bounded.

    python -m tests.fuzzing --inputs 100000 [--seed 0] [--parsers header,plan] [--save FOLDER]

Each parser runs in a process of its own, one after the other. Prints one Markdown table; an input that went wrong is
saved in FOLDER, and the exit code is 1 then.
"""

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.fuzzing.running import LONGEST_CALL, Tally, in_a_folder_of_its_own
from tests.fuzzing.targets import PARSERS

MOST_MIB = 1024
SHARES = {
    **{"healing": 0.06, "footprint": 0.06, "ledger": 0.06, "sweep": 0.06, "run": 0.1, "cli": 0.2},
    **{"quantizer": 0.2, "opened": 0.2, "calibration": 0.3, "finished": 0.2, "watched": 0.06, "fitted": 0.03},
}
"""Of the parsers whose stage is slow; the others have one share each."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing")
    parser.add_argument("--inputs", type=int, default=100_000, help="of all parsers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parsers", default=",".join(PARSERS))
    parser.add_argument("--save", type=Path, default=Path("fuzzing-faults"))
    asked = parser.parse_args()
    names = asked.parsers.split(",")
    whole = sum(SHARES.get(name, 1) for name in names)
    print("| parser | inputs | accepted | refused | faults | longest call (CPU s) | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    tallies = []
    for name in names:
        tallies.append(_apart(name, round(asked.inputs * SHARES.get(name, 1) / whole), asked.seed))
        _print(tallies[-1])
        _save(tallies[-1], name, asked.save)
    _print(_together(tallies))
    return int(any(tally.faults or tally.longest > LONGEST_CALL or tally.peak_mib > MOST_MIB for tally in tallies))


def _apart(name: str, inputs: int, seed: int) -> Tally:
    """In a fresh process, whose peak of memory is the parser's own."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(in_a_folder_of_its_own, name, inputs, seed).result()
    except BrokenProcessPool:
        return Tally(name, inputs, faults=[("the process died", b"")])


def _together(tallies: list[Tally]) -> Tally:
    total = Tally("together")
    for tally in tallies:
        total.inputs += tally.inputs
        total.accepted += tally.accepted
        total.refused += tally.refused
        total.faults += tally.faults
        total.longest = max(total.longest, tally.longest)
        total.peak_mib = max(total.peak_mib, tally.peak_mib)
    return total


def _print(tally: Tally) -> None:
    cells = (tally.parser, *(f"{n:,}" for n in (tally.inputs, tally.accepted, tally.refused, len(tally.faults))))
    print("|", " | ".join((*cells, f"{tally.longest:.2f}", str(tally.peak_mib))), "|", flush=True)


def _save(tally: Tally, name: str, folder: Path) -> None:
    """The first input of each kind of fault, and what was said."""
    kinds: dict[str, bytes] = {}
    for said, content in tally.faults:
        kinds.setdefault(said, content)
    for number, (said, content) in enumerate(kinds.items()):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{number}").write_bytes(content)
        print(f"{folder / name}-{number}: {said}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
