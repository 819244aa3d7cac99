"""A short form of `python -m tests.kills`, in a process of its own: it forks, and that needs one without threads."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Faults that are being mended.
STILL_LEFT: set[str] = set()


def in_a_process(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.stdout


@pytest.mark.slow
def test_no_kill_leaves_half_a_result_or_stops_the_next_run() -> None:
    said = in_a_process("-m", "tests.kills", "--kills", "33")
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "|" in line]
    (together,) = [dict(zip(header, row, strict=True)) for row in rows if row[0] == "together"]
    assert together.pop("kills") == "33"
    broken = {kind for kind, count in together.items() if re.fullmatch("[1-9][0-9]*", count)}
    assert broken <= STILL_LEFT, said


IN_PLACE = """
import sys, time
from pathlib import Path
from tests.kills import Killing, Verb

def writes_in_place(given, work, again):
    (given / "input").write_text("touched" if again else "an input")
    with (work / "out").open("w") as file:
        for _ in range(200):
            file.write("x")
            file.flush()
            time.sleep(0.001)
    (work / ("seen" if again else "once")).touch()

given, scratch = Path(sys.argv[1]) / "given", Path(sys.argv[1]) / "scratch"
given.mkdir(), scratch.mkdir(), (given / "input").write_text("an input")
killing = Killing(Verb("write", writes_in_place, "out"), given, scratch)
killing.kill(after=0.1)
print(sorted(killing.tally.broken), killing.tally.changes)
"""


def test_what_writes_in_place_and_into_its_source_is_found_out(tmp_path: Path) -> None:
    said = in_a_process("-c", IN_PLACE, str(tmp_path))
    assert said.split("\n")[0] == "['half a result', 'leftovers', 'source changed'] 2"
