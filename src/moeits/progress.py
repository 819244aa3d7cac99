"""How long work reports its progress: a callable, so that the library itself never prints."""

from typing import Protocol


class Progress(Protocol):
    """Called as work advances: `what` is being done, `done` of `total` units of it are finished.

    A `what` that is a `Note` is not work but a sentence for a person.
    """

    def __call__(self, what: str, done: int, total: int) -> None: ...


class Note(str):
    """What a person should know though nobody asked, such as what an interrupted run left."""

    __slots__ = ()


def silent(what: str, done: int, total: int) -> None:
    """No-op progress callback."""
