"""How long work reports its progress: a callable, so that the library itself never prints."""

from typing import Protocol


class Progress(Protocol):
    """Called as work advances: `what` is being done, `done` of `total` units of it are finished."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def silent(what: str, done: int, total: int) -> None:
    """No-op progress callback."""
