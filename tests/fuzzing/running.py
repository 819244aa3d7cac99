"""Feed mutants to one parser and count what becomes of them."""

import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from moeits.errors import MoeitsError
from tests.fuzzing.parser import Parser
from tests.fuzzing.targets import PARSERS

LONGEST_CALL = 5.0
"""Seconds of CPU that a call may take."""


class Endless(BaseException):
    """A call that took longer. Not an Exception, so that nobody in between catches it."""


@dataclass
class Tally:
    """What became of the inputs of a parser."""

    parser: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    longest: float = 0.0
    """Seconds of CPU of the longest call."""
    peak_mib: int = 0
    faults: list[tuple[str, bytes]] = field(default_factory=list)
    """The end of the traceback, and the input."""


def fuzz(parser: Parser, inputs: int, seed: int) -> Tally:
    """That many mutants of one seed. The well-formed inputs come first, and must be accepted."""
    tally = Tally(parser.name)
    for content in parser.valid:
        parser.feed(content)
    random = Random(f"{parser.name} {seed}")
    for _ in range(inputs):
        _one(parser.feed, parser.mutant(random), tally)
    return tally


def in_a_folder_of_its_own(name: str, inputs: int, seed: int) -> Tally:
    """What a process does that fuzzes one parser and nothing else, so that its peak of memory is the parser's."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(PARSERS[name](Path(folder)), inputs, seed)
    tally.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name}: {time.process_time() - began:.0f} s of CPU", file=sys.stderr, flush=True)
    return tally


def _one(feed: Callable[[bytes], None], content: bytes, tally: Tally) -> None:
    tally.inputs += 1
    began = time.process_time()
    try:
        with _at_most(LONGEST_CALL), warnings.catch_warnings():
            warnings.simplefilter("error")
            feed(content)
        tally.accepted += 1
    except MoeitsError as error:
        tally.refused += 1
        if not str(error).strip():
            tally.faults.append((f"{type(error).__name__} without a sentence", content))
    except (Exception, Endless) as error:
        tally.faults.append((_where(error), content))
    tally.longest = max(tally.longest, time.process_time() - began)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        raise Endless(f"not done after {seconds:g} s of CPU")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _where(error: BaseException) -> str:
    """Kind of error and the last lines of moeits and of anything on the way to it, without the message's own data."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames if "moeits/" in frame.filename
    ]
    return f"{type(error).__name__}: {str(error)[:200]!r} at {' < '.join(inside[:-4:-1]) or frames[-1].name}"
