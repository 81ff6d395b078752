"""Work that threads do ahead: in order, so much of it and no more, errors in their turn."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.data.preparing.ahead import Behind, ahead

pytestmark = pytest.mark.quick


@settings(deadline=None, max_examples=30)
@given(
    delays=st.lists(st.integers(0, 3), max_size=12),
    bad=st.sets(st.integers(0, 11)),
    threads=st.integers(1, 4),
    most=st.integers(1, 6),
)
def test_results_come_in_order_and_no_more_are_begun_than_may_be(delays, bad, threads, most):
    begun, taken, ahead_of = [], [], []

    def make(item):
        number, delay = item
        begun.append(number)
        time.sleep(delay / 2000)
        if number in bad:
            raise ValueError(number)
        return -number

    for (number, _), result in ahead(make, enumerate(delays), threads=threads, most=most):
        try:
            assert result.result() == -number
        except ValueError as error:
            assert error.args == (number,) and number in bad
        ahead_of.append(len(begun) - len(taken))
        taken.append(number)
    assert taken == sorted(begun) == list(range(len(delays)))
    assert not ahead_of or max(ahead_of) <= most


def test_left_early_no_more_is_begun_and_what_is_begun_ends():
    begun, ended = [], []

    def make(item):
        begun.append(item)
        time.sleep(0.05)
        ended.append(item)

    work = ahead(make, range(100), threads=2, most=50)
    next(work)
    work.close()
    assert sorted(begun) == sorted(ended) and len(begun) <= 4


def test_what_was_handed_out_may_be_waited_for_after_the_last_item():
    handed = list(ahead(lambda item: time.sleep(0.02) or item, range(5), threads=1, most=5))
    assert [result.result() for _, result in handed] == list(range(5))


def test_at_most_one_is_not_finished_and_its_error_is_heard():
    gate, finished = threading.Event(), []
    with pytest.raises(OSError, match="full"), Behind() as behind:
        behind.begin(gate.wait)
        opened = threading.Timer(0.05, gate.set)
        opened.start()
        behind.begin(lambda: finished.append(gate.is_set()))
        behind.begin(fail)
        behind.begin(lambda: finished.append("never"))
    assert finished == [True]


def test_what_is_begun_is_finished_where_the_next_one_fails():
    finished = []
    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.begin(lambda: time.sleep(0.05) or finished.append(1))
        raise KeyboardInterrupt
    assert finished == [1]


def fail():
    raise OSError("full")
