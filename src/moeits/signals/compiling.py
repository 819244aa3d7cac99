"""Compiled functions: by numba, without the GIL, kept on disk for the next process.

Importing this takes a third of a second, for numba, so estimators import their kernels where they use them.
"""

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as numba compiles it at its first call."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place to keep it: the package and the home folder are both read-only
        return numba.njit(nogil=True)(function)
