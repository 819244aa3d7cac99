"""What was made for other programs, as a person sees it."""

from typing import Any

from moeits.console import out
from moeits.sizes import format_size
from moeits.stages.export import Export


def show_export(made: Export, arguments: dict[str, Any]) -> None:
    """Where the file is, and how large."""
    out(f"written: {arguments['gguf']} ({format_size(made.nbytes)}, {made.outtype})")
