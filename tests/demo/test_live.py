"""Work that is told about while it goes on."""

from threading import Event

import pytest

from var_toolkit.demo.live import AbandonedError, live


def test_what_is_told_comes_in_order_and_the_result_last():
    def work(tell):
        for number in range(3):
            tell(number)
        return 3

    assert list(live(work)) == [0, 1, 2, 3]


def test_it_is_told_before_the_work_is_over():
    go_on = Event()

    def work(tell):
        tell("first")
        assert go_on.wait(10)
        return "last"

    heard = live(work)
    assert next(heard) == "first"
    go_on.set()
    assert next(heard) == "last"


def test_an_error_of_the_work_is_raised_to_who_listens():
    def work(tell):
        tell("first")
        raise ValueError("no such seed")

    heard = live(work)
    assert next(heard) == "first"
    with pytest.raises(ValueError, match="no such seed"):
        next(heard)


def test_work_that_nobody_listens_to_ends():
    ended, left = Event(), Event()

    def work(tell):
        tell("first")
        left.wait(10)
        try:
            tell("second")
        except AbandonedError:
            ended.set()
            raise
        return "last"

    heard = live(work)
    next(heard)
    heard.close()
    left.set()
    assert ended.wait(10)
