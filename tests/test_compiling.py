"""Compiled kernels: imported when something is scored, and compiled anew where they cannot be kept."""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numba
import pytest

from moeits.signals.compiling import compiled


def test_the_package_is_imported_without_numba() -> None:
    program = "import sys, moeits.command_line.app; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_kernel_that_cannot_be_kept_on_disk_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere_to_write(*, cache: bool = False, **how: Any) -> Callable[..., Any]:
        # What numba 0.68 raises when both the package and the home folder are read-only.
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available for file 'double.py'")
        return numba.njit(**how)

    def double(number):  # type: ignore[no-untyped-def]
        return 2 * number

    monkeypatch.setattr("moeits.signals.compiling.numba", SimpleNamespace(njit=nowhere_to_write))
    assert compiled(double)(21) == 42
