"""What was made for other programs, as a person sees it."""

from typing import Any

from moeits.console import out
from moeits.sizes import format_size
from moeits.stages.export import Export
from moeits.stages.push import Pushed


def show_export(made: Export, arguments: dict[str, Any]) -> None:
    """Where the file is, and how large, and what is known against it."""
    out(f"written: {arguments['gguf']} ({format_size(made.nbytes)}, {made.outtype})")
    if made.caution:
        out(f"caution: {made.caution}")


def show_pushed(made: Pushed, _arguments: dict[str, Any]) -> None:
    """Where it is, how much, and who can see it."""
    out(f"on the hub: {made.url} ({len(made.files)} files, {format_size(made.nbytes)})")
    out("everybody can see it" if not made.private else "private, unless the repository was there before")
