"""Stands in for SGLang's kernels where they are not built, as on a CPU without AMX: names alone.

SGLang imports them by name on every CPU, and computes by plain torch where they cannot be used. Put this folder on
`sys.path` before it is imported. A kernel that is called all the same raises NotImplementedError, so nothing is
computed here.
"""

from collections.abc import Callable
from typing import Any, NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def not_built(*_args: Any, **_settings: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is not built here")

    return not_built
