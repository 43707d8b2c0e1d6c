"""What is remembered of reported series: revisions for long, images for a while, and both within limits."""

import pytest

from gateway import closed_series
from gateway.closed_series import ClosedSeries, ClosedSeriesMemory
from gateway.idle import Phase, Source
from models import SeriesKey

REMEMBER_S = 100.0


def key(n: int) -> SeriesKey:
    return SeriesKey("1.2", f"1.2.{n}", None)


def closed(images: int, at: float = 0.0, revision: int = 1) -> ClosedSeries:
    held = dict.fromkeys(f"1.2.3.{n}" for n in range(images))
    return ClosedSeries(revision, Source("CT1", "CT"), Phase.OPEN, at, at, "idle", True, held)


@pytest.fixture
def memory() -> ClosedSeriesMemory:
    return ClosedSeriesMemory(REMEMBER_S, {key(9): 4})


def test_a_series_that_nobody_knows_begins_at_nothing(memory: ClosedSeriesMemory) -> None:
    assert memory.take(key(1), 0.0) == (0, None)
    assert memory.images == 0


def test_of_an_earlier_run_only_the_revision_is_known(memory: ClosedSeriesMemory) -> None:
    assert memory.take(key(9), 0.0) == (4, None)
    assert memory.take(key(9), 0.0) == (0, None)  # it is taken


@pytest.mark.parametrize(("later_s", "known"), [(0.0, True), (REMEMBER_S, True), (REMEMBER_S + 0.001, False)])
def test_images_are_known_for_a_while_and_the_revision_for_longer(
    memory: ClosedSeriesMemory, later_s: float, known: bool
) -> None:
    one = closed(3, at=10.0, revision=7)
    memory.add(key(1), one, 10.0)
    assert memory.images == 3
    revision, previous = memory.take(key(1), 10.0 + later_s)
    assert revision == 7
    assert previous is (one if known else None)
    assert memory.images == 0


def test_what_is_too_old_is_forgotten_with_the_next_series_and_what_is_not_stays(memory: ClosedSeriesMemory) -> None:
    for n, at in ((1, 0.0), (2, 50.0), (3, REMEMBER_S + 1.0)):
        memory.add(key(n), closed(2, at), at)
    assert memory.images == 4
    assert memory.take(key(1), REMEMBER_S + 1.0) == (1, None)
    assert memory.take(key(2), REMEMBER_S + 1.0)[1] is not None


def test_more_images_than_are_remembered_are_forgotten_the_oldest_first(
    memory: ClosedSeriesMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_series, "REMEMBERED_IMAGES", 6)
    for n in (1, 2, 3):
        memory.add(key(n), closed(3), 0.0)
        assert memory.images == min(3 * n, 6)
    assert [memory.take(key(n), 0.0)[1] is not None for n in (1, 2, 3)] == [False, True, True]


def test_more_revisions_than_are_remembered_are_forgotten_the_oldest_first(
    memory: ClosedSeriesMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_series, "REMEMBERED_REVISIONS", 2)
    for n in (1, 2):
        memory.add(key(n), closed(1, revision=n), 0.0)
    assert [memory.take(key(n), 0.0)[0] for n in (9, 1, 2)] == [0, 1, 2]
