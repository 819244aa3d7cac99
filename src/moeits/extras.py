"""What not every installation has: optional dependencies, imported when they are needed."""

import functools
import importlib
import re
import warnings
from collections.abc import Mapping
from types import ModuleType

from moeits.errors import MissingExtra

TRIED: Mapping[str, tuple[str, str]] = {
    "accelerate": ("1.12", "2"),
    "lm_eval": ("0.4.13", "0.5"),
    "peft": ("0.21", "1"),
    "torch": ("2.9", "3"),
    "transformers": ("5.20", "6"),
}
"""Package -> the versions that moeits was written for: from the first on, before the second."""


def need(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency. Raises MissingExtra, naming the extra that brings it.

    Of a version that nobody has tried it warns, once for each package.
    """
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"This needs {error.name or module}, which is not installed. In a clone of moeits: pip install '.[{extra}]'"
        ) from None
    package = module.partition(".")[0]
    if package in TRIED:
        _warn_of(package, str(getattr(importlib.import_module(package), "__version__", "")))
    return found


@functools.cache
def _warn_of(package: str, version: str) -> None:
    first, untried = TRIED[package]
    if version and not _numbers(first) <= _numbers(version) < _numbers(untried):
        warnings.warn(
            f"moeits was tried with {package} >={first},<{untried}; this is {version}, and it may do something else.",
            stacklevel=3,
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
