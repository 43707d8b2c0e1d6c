"""What the gateway takes time for: pauses of the process are noticed, and made up for."""

from gateway.clock import PAUSED_S, SETTLE_S, Pauses


def test_a_wait_that_ends_far_too_late_was_a_pause_and_nothing_is_due_until_senders_have_gone_on() -> None:
    pauses = Pauses()
    assert pauses.deadline(10.0, 9.0) == 10.0
    pauses.woke(30.0)
    assert not pauses.over(30.0)
    assert pauses.deadline(11.0, 30.0) == 30.0 + SETTLE_S
    pauses.woke(30.2)
    assert not pauses.over(30.2)
    assert pauses.over(30.0 + SETTLE_S)
    assert pauses.deadline(40.0, 31.0) == 40.0


def test_a_wait_that_ends_in_time_or_a_little_late_is_none() -> None:
    pauses = Pauses()
    pauses.deadline(10.0, 9.0)
    pauses.woke(10.0 + PAUSED_S)
    assert pauses.over(10.0 + PAUSED_S)


def test_what_was_due_before_the_wait_began_makes_no_pause_of_it() -> None:
    pauses = Pauses()
    pauses.deadline(1.0, 9.0)
    pauses.woke(9.5)
    assert pauses.over(9.5)
    assert pauses.deadline(None, 9.5) is None
    pauses.woke(99.0)
    assert pauses.over(99.0)
