"""Who does the work of a scoring: the same units of work, in threads here or on other machines.

An engine decides where work is done and in which order, never what comes out of it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Carries out a function for many items. Leaving its context ends it; what had not begun by then is not done."""

    workers: int
    """How many items are worked on at a time, at most."""

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item], *, most: int | None = None
    ) -> Iterator[Result]:
        """The results in the order of the items. Work begins when this is called, not when the first result is taken.

        `most`: items that may be worked on or wait at a time. An exception of the work is raised at its item's turn.
        """
