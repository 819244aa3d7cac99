"""What reads one kind of input, with well-formed inputs to begin with and the stage that reads them.

A parser is made in a folder of its own, where its stages may write. `feed` returns if the input was accepted and raises
whatever the stage raises; only MoeitsError is right.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import moeits
from moeits.errors import MoeitsError
from tests.toys import make_toy


class Refused(MoeitsError):
    """The command line said a sentence and left with exit code 2."""


@dataclass(frozen=True)
class Parser:
    """What reads one kind of input."""

    name: str
    valid: tuple[bytes, ...]
    """Inputs that must be accepted."""
    mutant: Callable[[Random], bytes]
    feed: Callable[[bytes], None]


def toy(folder: Path, family: str = "qwen2_moe", **changes: Any) -> Path:
    return make_toy(folder, family, experts=4, layers=2, **changes)


def cut(model: Path, output: Path) -> None:
    """All that simplify does, on a checkpoint whose header or config is damaged."""
    shutil.rmtree(output, ignore_errors=True)
    evidence = moeits.score(model)
    moeits.prune(model, plan=moeits.plan(evidence, reduction=0.3), output=output)


def now_and_then(content: bytes, every: int) -> bool:
    """Whether to go through the slow stages too; the same for the same input."""
    return sum(content[-64:]) % every == 0
