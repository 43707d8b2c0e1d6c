"""The wall clock beside the monotonic one: when it was set forward."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from storage.leaps import Leaps, were_set

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def leaps_after(monkeypatch: pytest.MonkeyPatch, *steps: tuple[float, float]) -> tuple[datetime | None, datetime]:
    """When the clock was set forward last, and since when it runs, as so many seconds pass by it and by the other."""
    elapsed = 0.0
    monkeypatch.setattr("storage.leaps.monotonic", lambda: elapsed)
    with time_machine.travel(NOW, tick=False) as clock:
        leaps = Leaps()
        for wall_s, monotonic_s in steps:
            clock.shift(timedelta(seconds=wall_s))
            elapsed += monotonic_s
            last = leaps.last()
        return last, leaps.since()


@pytest.mark.parametrize(
    "steps", [[(0, 0)], [(86400, 86400)], [(-3600, 0)], [(19.9, 0)], [(19, 0)] * 100, [(-3600, 0), (5, 5)]]
)
def test_a_clock_that_runs_or_is_set_back_or_by_little_has_run_since_the_start(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, float]]
) -> None:
    assert leaps_after(monkeypatch, *steps) == (None, NOW)


@pytest.mark.parametrize(("steps", "at_s"), [([(20.1, 0), (9, 9)], 20.1), ([(3600, 0), (60, 1), (5, 5)], 3660)])
def test_a_clock_that_is_set_forward_has_run_since_then(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, float]], at_s: float
) -> None:
    at = NOW + timedelta(seconds=at_s)
    assert leaps_after(monkeypatch, *steps) == (at, at)


@pytest.mark.parametrize(
    ("behind_s", "before_s", "expected"),
    [
        (0, None, False),
        (0, 0, False),
        (20, 0, False),
        (21, 0, True),
        (-21, 0, True),
        (3600, 3590, False),
        (0, 60, True),
    ],
)
def test_two_clocks_were_set_if_they_are_further_apart_than_before_or_less(
    behind_s: float, before_s: float | None, expected: bool
) -> None:
    assert were_set(behind_s, before_s) is expected
