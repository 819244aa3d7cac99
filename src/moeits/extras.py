"""What not every installation has: optional dependencies, imported when they are needed."""

import importlib
from types import ModuleType

from moeits.errors import MissingExtra


def need(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency. Raises MissingExtra, naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"This needs {error.name or module}, which is not installed. In a clone of moeits: pip install '.[{extra}]'"
        ) from None
