"""Engines: work is done in any order, and its results come in the order of the items."""

import threading
import time

import pytest

from moeits.engines.threads import Threads


def test_results_come_in_the_order_of_the_items_however_long_each_takes() -> None:
    with Threads(4) as engine:
        assert list(engine.map(lambda i: time.sleep(0.01 * (i % 3)) or i * i, range(20))) == [i * i for i in range(20)]


def test_work_begins_before_a_result_is_asked_for() -> None:
    begun = threading.Event()
    with Threads(1) as engine:
        engine.map(lambda _: begun.set(), [0])
        assert begun.wait(5)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_items_than_asked_are_under_way_or_wait(most: int) -> None:
    taken, given = [], []

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    with Threads(4) as engine:
        for i in engine.map(lambda i: i, items(), most=most):
            given.append(i)
            assert len(taken) - len(given) < most
    assert given == list(range(20))


def test_an_exception_comes_at_its_items_turn_and_ends_the_rest() -> None:
    worked = []

    def work(i: int) -> int:
        worked.append(i)
        time.sleep(0.01)
        if i == 3:
            raise KeyError(i)
        return i

    given = []
    with Threads(1) as engine, pytest.raises(KeyError):
        given.extend(engine.map(work, range(60)))
    assert given == [0, 1, 2]
    assert len(worked) < 30


def test_leaving_waits_for_what_is_under_way_and_drops_what_is_not() -> None:
    ended = []
    with Threads(2) as engine:
        engine.map(lambda i: time.sleep(0.05) or ended.append(i), range(100))
    count = len(ended)
    assert count <= 4
    time.sleep(0.15)
    assert len(ended) == count
