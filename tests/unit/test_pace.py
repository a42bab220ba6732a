"""How soon the API server is asked again."""

import pytest

from kdns import limits
from kdns.cluster.pace import CALM, SLOWEST, Pace


def test_failures_slow_down_to_less_than_two_seconds_and_one_a_second():
    pace = Pace(lambda: 1.0)
    waits = [pace.pause(0) for _ in range(8)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, SLOWEST, SLOWEST, SLOWEST])
    assert Pace(lambda: 0.0).pause(0) == pytest.approx(0.05)
    assert SLOWEST <= 2 and SLOWEST * 0.75 >= 1


def test_a_steady_stream_ends_the_row():
    pace = Pace(lambda: 1.0)
    for _ in range(20):
        pace.pause(0)
    pace.steady()
    assert pace.pause(0) == pytest.approx(0.1)


def test_retry_after_is_kept_to_within_a_fifth_and_a_bound():
    assert Pace(lambda: 0.0).pause(10) == 10
    assert Pace(lambda: 1.0).pause(10) == 12
    assert Pace(lambda: 0.0).pause(10**9) == limits.API_RETRY_AFTER


def test_a_list_is_due_at_once_unless_the_last_one_was_just_now():
    pace = Pace(lambda: 0.5)
    pace.want_list(100.0)
    assert pace.list_at == 100.0
    pace.end_list(101.0)
    assert pace.list_at is None
    pace.want_list(102.0)
    assert pace.list_at == 103.0
    pace.want_list(102.5)
    assert pace.list_at == 103.0, "it is wanted already"
    pace.begin_list()
    pace.end_list(104.0)
    pace.want_list(104.0 + CALM)
    assert pace.list_at == 104.0 + CALM, "the spell has ended"


def test_ten_lists_at_most_in_five_minutes_of_trouble():
    pace, now, lists = Pace(lambda: 0.5), 0.0, 1
    pace.end_list(now)
    while True:
        pace.want_list(now)
        assert pace.list_at is not None
        now = pace.list_at
        if now > 300:
            break
        lists += 1
        pace.begin_list()
        pace.end_list(now)
    assert lists == 9
